// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the command to the guest's first instruction: the bare guest, saved with 128 MiB in use, in memory of several sizes.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lacuna::control::{self, Client};
use lacuna::machine::{MachineState, Status};

use super::median;

const SIZES: [&str; 3] = ["1G", "4G", "16G"];
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn measure(folder: &Path, runs: usize) -> Result<(), Box<dyn Error>> {
    println!("from the command to the first instruction, medians of {runs} runs in turns, ms");
    println!("memory  lazy   eager");
    let mut files = Vec::new();
    for size in SIZES {
        files.push((size, save(folder, size)?));
    }
    let mut found = vec![(Vec::new(), Vec::new()); files.len()];
    for _ in 0..runs {
        for ((size, file), (lazy, eager)) in files.iter().zip(&mut found) {
            lazy.push(restore(folder, size, file, true)?);
            eager.push(restore(folder, size, file, false)?);
        }
    }
    for ((size, _), (lazy, eager)) in files.iter().zip(found) {
        println!("{size:<6} {:>6.1} {:>7.1}", median(lazy), median(eager));
    }
    Ok(())
}

/// Saves a guest with memory of `size`.
fn save(folder: &Path, size: &str) -> Result<PathBuf, Box<dyn Error>> {
    let file = folder.join(format!("guest-{size}"));
    let mut machine = Machine::start(
        folder,
        &[
            "run", "--memory", size, "--in-use", "128M", "--freed", "256M",
        ],
    )?;
    machine.until("the guest to be ready", |status| {
        status.guest.as_ref().is_some_and(|guest| guest.ready)
    })?;
    let target = format!("file:{}", file.display());
    let sent = Command::new(std::env::current_exe()?)
        .args(["send", &target, "--hold", "--control"])
        .arg(&machine.control)
        .stdout(Stdio::null())
        .status()?;
    if !sent.success() {
        return Err("the guest is not saved".into());
    }
    Ok(file)
}

/// Restores it, and returns the milliseconds from the command's start to the first instruction.
fn restore(folder: &Path, size: &str, file: &Path, is_lazy: bool) -> Result<f64, Box<dyn Error>> {
    let target = format!("file:{}", file.display());
    let mut args = vec!["receive", &target, "--memory", size];
    if is_lazy {
        args.push("--lazy");
    }
    let mut machine = Machine::start(folder, &args)?;
    let status = machine.until("the guest to run", |status| {
        status.machine == MachineState::Running && status.restore.is_some()
    })?;
    Ok(status.restore.unwrap_or_default().first_instruction_ms)
}

/// A machine's process, which is ended with this.
struct Machine {
    process: Child,
    control: PathBuf,
}

impl Machine {
    fn start(folder: &Path, args: &[&str]) -> Result<Self, Box<dyn Error>> {
        let control = folder.join("control");
        let process = Command::new(std::env::current_exe()?)
            .args(args)
            .arg("--control")
            .arg(&control)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, control })
    }

    fn until(
        &mut self,
        what: &str,
        is_reached: impl Fn(&Status) -> bool,
    ) -> Result<Status, Box<dyn Error>> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("a machine has ended: {status}").into());
            }
            let asked = Client::connect(&self.control)
                .and_then(|mut client| client.ask::<Status>(&control::Command::Status));
            if let Ok(status) = asked
                && is_reached(&status)
            {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("waited in vain for {what}").into())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.control);
    }
}
