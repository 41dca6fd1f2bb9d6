// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A QEMU that is new enough to be a peer: 10.2 or newer, whose `vhost-user-test-device-pci` is a front end for any
//! vhost-user device.
//!
//! If the machine's own QEMU is older, Debian's unstable one is downloaded once into a folder of the cache, with a vsock
//! device for one test, and started by its own dynamic linker. Only the download needs privileges.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "qemu-system-x86_64";
/// The packages: QEMU, and the vsock device of one test.
const PACKAGES: &str = "qemu-system-x86,vhost-device-vsock";
/// The name of the folder in the cache. Changes with the packages in it.
const FOLDER: &str = "debian-unstable";
/// The first version that creates the device.
const FIRST: (u32, u32) = (10, 2);

/// An installation of QEMU.
#[derive(Clone, Debug)]
pub enum Installation {
    /// This machine's own.
    Here(PathBuf),
    /// In the root folder of another Debian.
    Folder(PathBuf),
}

impl Installation {
    /// An installation with the device. The first caller may have to wait for a download.
    ///
    /// # Errors
    /// A sentence about what is missing.
    pub fn find_or_fetch() -> Result<Self, String> {
        if let Some(own) =
            Self::own().filter(|own| own.version().is_ok_and(|version| is_enough(&version)))
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

    /// This machine's own, however old it is.
    pub fn own() -> Option<Self> {
        program(PROGRAM).map(Self::Here)
    }

    /// The program's file.
    pub fn program(&self) -> PathBuf {
        match self {
            Self::Here(program) => program.clone(),
            Self::Folder(root) => root.join("usr/bin").join(PROGRAM),
        }
    }

    /// The command that starts it here.
    pub fn command(&self) -> Command {
        let mut command = self.command_of(&self.program());
        if let Self::Folder(root) = self {
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(firmware));
            }
        }
        command
    }

    /// The command that starts `program`, which was installed with it.
    pub fn command_of(&self, program: &Path) -> Command {
        match self {
            Self::Here(_) => Command::new(program),
            Self::Folder(root) => {
                let libraries = root.join("usr/lib/x86_64-linux-gnu");
                let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
                command
                    .env("QEMU_MODULE_DIR", libraries.join("qemu"))
                    .arg("--library-path")
                    .arg(&libraries)
                    .arg(program);
                command
            }
        }
    }

    /// The version, such as "11.1.3".
    pub fn version(&self) -> Result<String, String> {
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
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), "sid"])
        .args([root.as_os_str(), mirror.as_ref()])
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or("no reason given");
        return Err(format!("{needs}, and debootstrap failed ({last})"));
    }
    // Last, and atomically: a folder with this name is complete.
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

/// A program of this machine, by its name.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
