// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A QEMU with the Linux guest of the nested lane, and its QMP socket.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lacuna::qmp::Qmp;
use serde_json::{Value, json};

use crate::MIB;

/// The environment variable that names the program.
const VARIABLE: &str = "LACUNA_QEMU";
/// The version that made `vhost-user-test-device` available.
const OLDEST: (u32, u32) = (10, 2);
const MEMORY: u64 = 2048 * MIB;
/// What the guest keeps, and what it writes and frees before it is ready: enough that all the memory it gives back was
/// allocated by the host.
const IN_USE: u64 = 64 * MIB;
const FREED: u64 = 1536 * MIB;
const POLL: Duration = Duration::from_millis(50);

/// A QEMU that is new enough.
pub fn find() -> Result<PathBuf, String> {
    let program = std::env::var_os(VARIABLE)
        .map_or_else(|| PathBuf::from("qemu-system-x86_64"), PathBuf::from);
    let output = Command::new(&program).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = version(&text).unwrap_or_default();
    if version < OLDEST {
        let (major, minor) = OLDEST;
        return Err(format!(
            "{} is version {}.{}; {major}.{minor} or newer can attach our device: name one by {VARIABLE}",
            program.display(),
            version.0,
            version.1
        ));
    }
    Ok(program)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(['.', ' ']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The kernel argument with the frequency of the time stamp counter, which is this machine's. Without it the guest measures
/// the frequency, which fails on a busy machine, and then the guest hangs.
fn tsc_frequency() -> String {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let megahertz = processors
        .lines()
        .find(|line| line.starts_with("cpu MHz"))
        .and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    megahertz.map_or_else(String::new, |megahertz| {
        format!(" tsc_early_khz={:.0}", megahertz * 1000.0)
    })
}

/// A running machine. Ends when dropped.
pub struct Qemu {
    child: Child,
    console: PathBuf,
    qmp_path: PathBuf,
    qmp: Option<Qmp>,
}

impl Qemu {
    /// Starts a machine with its own balloon, or with the one at `vhost_user`. The guest's kernel gets `argument`.
    pub fn start(
        program: &Path,
        folder: &Path,
        vhost_user: Option<&Path>,
        argument: &str,
    ) -> Result<Self, Box<dyn Error>> {
        let files = lacuna::nested::guest_files()?;
        let (console, qmp_path) = (folder.join("console"), folder.join("qmp"));
        let memory = format!("memory-backend-memfd,id=mem,size={MEMORY},share=on");
        let arguments = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable{} mitigations=off \
             lacuna.in_use={IN_USE} lacuna.freed={FREED} lacuna.seed=1 {argument}",
            tsc_frequency()
        );
        let mut command = Command::new(program);
        command
            .args([
                "-machine",
                "microvm,acpi=on,pit=on,pic=on,rtc=on,memory-backend=mem",
            ])
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "1"])
            .args(["-m", &format!("{}M", MEMORY / MIB), "-object", &memory])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .arg("-no-reboot")
            .arg("-kernel")
            .arg(files.kernel)
            .arg("-initrd")
            .arg(files.initrd)
            .args(["-append", &arguments])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp_path.display()));
        match vhost_user {
            None => command.args(["-device", "virtio-balloon-device"]),
            Some(socket) => command
                .arg("-chardev")
                .arg(format!("socket,id=balloon,path={}", socket.display()))
                .args([
                    "-device",
                    "vhost-user-test-device,chardev=balloon,virtio-id=5,num_vqs=5,vq_size=1024,config_size=16",
                ]),
        };
        let log = File::create(folder.join("qemu.log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self {
            child,
            console,
            qmp_path,
            qmp: None,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the guest has filled its memory and freed it, and opens QMP.
    pub fn wait_until_ready(&mut self, patience: Duration) -> Result<(), Box<dyn Error>> {
        let end = Instant::now() + patience;
        let said = || std::fs::read_to_string(&self.console).unwrap_or_default();
        while !said().contains("\"ready\":true") {
            if let Some(status) = self.child.try_wait()? {
                let folder = self.console.with_file_name("qemu.log");
                let why = std::fs::read_to_string(folder).unwrap_or_default();
                return Err(format!("QEMU has ended ({status}): {why}").into());
            }
            if Instant::now() > end {
                return Err(
                    format!("the guest is not ready; its console says:\n{}", said()).into(),
                );
            }
            std::thread::sleep(POLL);
        }
        self.qmp = Some(Qmp::connect(&self.qmp_path)?);
        Ok(())
    }

    /// The longest gap of each of the guest's reports.
    pub fn gaps(&self) -> Vec<u64> {
        let said = std::fs::read_to_string(&self.console).unwrap_or_default();
        let gap = |line: &str| {
            let report: Value = serde_json::from_str(line.strip_prefix("lacuna-guest: ")?).ok()?;
            report["longest-gap"].as_u64().filter(|gap| *gap > 0)
        };
        said.lines().filter_map(gap).collect()
    }

    /// Asks the guest, through QEMU's own balloon, to give `bytes` back.
    pub fn set_target(&mut self, bytes: u64) -> Result<(), Box<dyn Error>> {
        self.ask("balloon", json!({ "value": MEMORY - bytes }))
            .map(drop)
    }

    /// Bytes in QEMU's own balloon.
    pub fn inflated(&mut self) -> Result<u64, Box<dyn Error>> {
        let answer = self.ask("query-balloon", json!({}))?;
        let left = answer["actual"].as_u64().ok_or("no size of the balloon")?;
        Ok(MEMORY - left)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Box<dyn Error>> {
        let qmp = self.qmp.as_mut().ok_or("QMP is not open")?;
        Ok(qmp.ask(command, arguments)?)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
