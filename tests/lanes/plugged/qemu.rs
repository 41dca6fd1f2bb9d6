// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU 10.2 or newer, whose `vhost-user-test-device-pci` is a front end for any vhost-user device.
//!
//! Where the machine's own QEMU is older, Debian's unstable one is fetched once into a folder of the cache and
//! started there by its own dynamic linker. It needs no privilege to run, only to be fetched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::claims::claims_under;
use super::device::Device;
use super::guest::Guest;
use super::initramfs::{program, with_shell};
use super::{MEMORY, Vmm};

const PROGRAM: &str = "qemu-system-x86_64";
/// The name of the folder in the cache.
const FOLDER: &str = "qemu-unstable";
/// The first version that creates the device.
const FIRST: (u32, u32) = (10, 2);

/// A QEMU with the device, and a stock Debian kernel.
#[derive(Clone, Debug)]
struct Qemu {
    installation: Installation,
    kernel: PathBuf,
    initrd: Vec<u8>,
}

impl Qemu {
    /// What it takes, or a sentence on standard output about what is missing. The first caller may wait for a
    /// download.
    fn find() -> Option<Self> {
        static FOUND: OnceLock<Result<Qemu, String>> = OnceLock::new();
        match FOUND.get_or_init(Self::gather) {
            Ok(qemu) => Some(qemu.clone()),
            Err(reason) => {
                println!("skipped: {reason}");
                None
            }
        }
    }

    fn gather() -> Result<Self, String> {
        let files = lacuna::nested::pci_guest_files().map_err(|error| error.to_string())?;
        let modules = fs::read(&files.initrd).map_err(|error| error.to_string())?;
        let installation = Installation::find_or_fetch()?;
        println!("QEMU {}", installation.version()?);
        Ok(Self {
            installation,
            kernel: files.kernel,
            initrd: [modules, with_shell(&[])?].concat(),
        })
    }
}

impl Vmm for Qemu {
    fn start(&self, device: &Device, arguments: &str) -> Guest {
        let folder = device.folder();
        let initrd = folder.join("qemu.cpio");
        fs::write(&initrd, &self.initrd).expect("there is room");
        let mut command = self.installation.command();
        command
            .args(["-accel", "tcg", "-machine", "q35,memory-backend=memory"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-serial", "stdio", "-m", &format!("{}M", MEMORY >> 20)])
            .args([
                "-object",
                &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"),
            ])
            .arg("-chardev")
            .arg(format!(
                "socket,id=balloon,path={}",
                device.socket().display()
            ))
            .args([
                "-device",
                "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,vq_size=1024,config_size=16",
            ])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(initrd)
            .args([
                "-append",
                &format!("console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off {arguments}"),
            ]);
        Guest::start(&command)
    }
}

/// Where a QEMU is.
#[derive(Clone, Debug)]
enum Installation {
    /// This machine's own.
    Here(PathBuf),
    /// The root of another Debian.
    Folder(PathBuf),
}

impl Installation {
    fn find_or_fetch() -> Result<Self, String> {
        let own = program(PROGRAM).map(Self::Here);
        if let Some(own) = own.filter(|own| own.version().is_ok_and(|version| is_enough(&version)))
        {
            return Ok(own);
        }
        let cache = lacuna::nested::cache_folder().map_err(|error| error.to_string())?;
        let folder = cache.join(FOLDER);
        if !folder.is_dir() {
            fetch(&cache, &folder)?;
        }
        Ok(Self::Folder(folder))
    }

    fn command(&self) -> Command {
        match self {
            Self::Here(program) => Command::new(program),
            Self::Folder(root) => {
                let libraries = root.join("usr/lib/x86_64-linux-gnu");
                let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
                command
                    .env("QEMU_MODULE_DIR", libraries.join("qemu"))
                    .arg("--library-path")
                    .arg(&libraries)
                    .arg(root.join("usr/bin").join(PROGRAM));
                for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(root.join(firmware));
                }
                command
            }
        }
    }

    /// The version, as in "11.1.3".
    fn version(&self) -> Result<String, String> {
        let output = self.command().arg("--version").output();
        let output = output.map_err(|error| format!("{PROGRAM} cannot be started: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_once("version ")
            .and_then(|(_, rest)| rest.split_ascii_whitespace().next())
            .map(str::to_owned)
            .ok_or_else(|| format!("{PROGRAM} does not tell its version: {text}"))
    }
}

/// Whether a version is [`FIRST`] or later.
fn is_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse().ok());
    numbers.next().zip(numbers.next()) >= Some(FIRST)
}

/// Puts Debian's unstable QEMU into `folder`, which is in `cache`.
fn fetch(cache: &Path, folder: &Path) -> Result<(), String> {
    let needs = format!("the {PROGRAM} here is older than {}.{}", FIRST.0, FIRST.1);
    if !rustix::process::geteuid().is_root() {
        return Err(format!(
            "{needs}, and only root may fetch Debian's unstable one"
        ));
    }
    let debootstrap = program("debootstrap")
        .ok_or_else(|| format!("{needs}, and debootstrap is missing: install it"))?;
    let mirror = mirror().ok_or_else(|| format!("{needs}, and apt knows no Debian mirror"))?;
    let work = tempfile::tempdir_in(cache).map_err(|error| error.to_string())?;
    let root = work.path().join("root");
    println!("fetching Debian's unstable QEMU into {}", folder.display());
    let output = Command::new(debootstrap)
        .args(["--variant=minbase", "--include=qemu-system-x86", "sid"])
        .args([root.as_os_str(), mirror.as_ref()])
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or("no reason given");
        return Err(format!("{needs}, and debootstrap failed ({last})"));
    }
    // Last, and in one step: a folder with this name is complete.
    fs::rename(&root, folder).map_err(|error| error.to_string())
}

/// The Debian mirror that apt uses.
fn mirror() -> Option<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .args(["ORIGIN: Debian", "LABEL: Debian"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(str::to_owned)
}

claims_under!(Qemu::find);
// The kernel of User Mode Linux has no page poisoning.
claims_under! { Qemu::find: poisoned_pages_are_neither_hinted_nor_discarded, }
