// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU with KVM and its own balloon, running the stock Linux guest with our first process.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lacuna::qmp::Qmp;
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

/// A time limit for every step that only a hang exceeds.
const PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(10);
/// The beginning of the guest's reports.
const REPORT: &str = "lacuna-guest: ";
const LOADER: &str = "ld-linux-x86-64.so.2";
const PROGRAM: &str = "qemu-system-x86_64";
/// The kernel arguments of reference-vmm's guest, but with PCI.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet panic=-1 reboot=k no_timer_check tsc=reliable mitigations=off";

/// QEMU in a folder with everything that it needs.
pub struct Program(PathBuf);

impl Program {
    /// QEMU in `folder`.
    pub fn in_folder(folder: PathBuf) -> Result<Self, Failure> {
        match folder.join(PROGRAM).is_file() {
            true => Ok(Self(folder)),
            false => Err(format!("there is no {PROGRAM} in {}", folder.display()).into()),
        }
    }

    /// The first line of its version.
    pub fn version(&self) -> Result<String, Failure> {
        let output = self.command().arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    fn command(&self) -> Command {
        let Self(folder) = self;
        let mut command = Command::new(folder.join(LOADER));
        command
            .arg("--library-path")
            .arg(folder)
            .arg(folder.join(PROGRAM))
            .arg("-L")
            .arg(folder);
        command
    }
}

/// A running machine. Ends when dropped.
pub struct Guest {
    child: Child,
    folder: PathBuf,
    qmp: Option<Qmp>,
}

impl Guest {
    /// Starts a machine with its files in the new `folder`. It boots a guest with `parameters` on its kernel's command line,
    /// or waits for one at `incoming`.
    pub fn start(
        program: &Program,
        folder: PathBuf,
        memory_bytes: u64,
        hints: &str,
        parameters: &str,
        incoming: Option<&str>,
    ) -> Result<Self, Failure> {
        fs::create_dir(&folder)?;
        let files = lacuna::nested::guest_files()?;
        let mut command = program.command();
        command
            .args(["-machine", "q35", "-accel", "kvm", "-cpu", "host"])
            .args(["-smp", "1", "-m", &format!("{}K", memory_bytes / 1024)])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-object", "iothread,id=hints", "-device"])
            .arg(format!(
                "virtio-balloon-pci,free-page-hint={hints},iothread=hints"
            ))
            .arg("-kernel")
            .arg(files.kernel)
            .arg("-initrd")
            .arg(initrd(&folder, &files.initrd)?)
            .args(["-append", &format!("{KERNEL_ARGUMENTS} {parameters}")])
            .arg("-serial")
            .arg(format!("file:{}", console(&folder).display()))
            .arg("-qmp")
            .arg(format!(
                "unix:{},server=on,wait=off",
                socket(&folder).display()
            ));
        if let Some(uri) = incoming {
            command.args(["-incoming", uri]);
        }
        let log = File::create(log(&folder))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self {
            child,
            folder,
            qmp: None,
        })
    }

    /// QMP, once QEMU listens.
    pub fn qmp(&mut self) -> Result<&mut Qmp, Failure> {
        if self.qmp.is_none() {
            let deadline = Instant::now() + PATIENCE;
            while !socket(&self.folder).exists() {
                self.goes_on("QEMU to listen", deadline)?;
            }
            self.qmp = Some(Qmp::connect(&socket(&self.folder))?);
        }
        self.qmp.as_mut().ok_or_else(|| "QMP is not open".into())
    }

    /// Waits for a report of the guest for which `enough` is true, and returns it.
    pub fn wait(&mut self, what: &str, enough: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(report) = self.report().filter(&enough) {
                return Ok(report);
            }
            self.goes_on(what, deadline)?;
        }
    }

    /// The guest's last report.
    pub fn report(&self) -> Option<Value> {
        let said = fs::read_to_string(console(&self.folder)).ok()?;
        let (said, _) = said.rsplit_once('\n')?;
        let report = |line: &str| serde_json::from_str(line.split_once(REPORT)?.1).ok();
        said.lines().rev().find_map(report)
    }

    /// Waits until the migration is completed. Returns the answer of `query-migrate`.
    pub fn end_of_migration(&mut self) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let migration = self.qmp()?.ask("query-migrate", json!({}))?;
            match migration["status"].as_str() {
                Some("completed") => return Ok(migration),
                Some("failed" | "cancelled") => {
                    return Err(format!("the migration failed: {migration}").into());
                }
                _ => self.goes_on("the migration to end", deadline)?,
            }
        }
    }

    /// Waits a moment. Fails if QEMU has ended or the time is over.
    fn goes_on(&mut self, what: &str, deadline: Instant) -> Result<(), Failure> {
        let ended = self.child.try_wait()?;
        if ended.is_none() && Instant::now() < deadline {
            thread::sleep(POLL);
            return Ok(());
        }
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Err(format!(
            "waited for {what} in vain (QEMU's exit: {ended:?}): {}{}",
            read(log(&self.folder)),
            read(console(&self.folder))
        )
        .into())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our own guest's initial ramdisk, followed by the PCI drivers, whose list replaces the first.
fn initrd(folder: &Path, ours: &Path) -> Result<PathBuf, Failure> {
    let drivers = lacuna::nested::pci_guest_files()?.initrd;
    let path = folder.join("initrd");
    let mut file = File::create(&path)?;
    for part in [ours, &drivers] {
        io::copy(&mut File::open(part)?, &mut file)?;
    }
    Ok(path)
}

fn console(folder: &Path) -> PathBuf {
    folder.join("console")
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("qmp")
}

fn log(folder: &Path) -> PathBuf {
    folder.join("log")
}
