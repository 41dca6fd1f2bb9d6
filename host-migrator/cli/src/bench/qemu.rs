// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's migration of the same memory: two QEMU processes, whose guests never run and whose memory is the bench's memory
//! files.

use std::env;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::BenchError;
use super::arm::Arm;
use super::content::Content;
use super::memory::Destination;
use super::record::{Sample, Took};
use crate::nested::{self, PackageError};
use crate::qmp::Qmp;

/// The environment variable that names the program.
const VARIABLE: &str = "LACUNA_QEMU";
/// A limit for every step that only a hang exceeds.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(5);

/// QEMU with `channels` multifd channels, over TCP.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    /// `setpriv`, by which QEMU ends when this process ends.
    setpriv: PathBuf,
    channels: u16,
}

impl Qemu {
    /// The QEMU that `LACUNA_QEMU` names, or the machine's own.
    ///
    /// # Errors
    /// [`PackageError`] if there is none.
    pub(super) fn find(channels: u16) -> Result<Self, PackageError> {
        let program = match env::var_os(VARIABLE) {
            Some(program) => program.into(),
            None => nested::program("qemu-system-x86_64", "qemu-system-x86")?,
        };
        Ok(Self {
            program,
            setpriv: nested::program("setpriv", "util-linux")?,
            channels,
        })
    }

    /// Starts a QEMU with `memory`; with `waits`, one that waits for a migration.
    pub(super) fn start(
        &self,
        socket: &Path,
        memory: &File,
        bytes: u64,
        waits: bool,
    ) -> Result<Machine, BenchError> {
        let file = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let mut command = Command::new(&self.setpriv);
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
            .args(["-machine", "q35,accel=tcg,memory-backend=memory"])
            .args(["-m", &format!("{bytes}B")])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=memory,size={bytes}B,mem-path={file},share=on"
            ))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        if waits {
            command.args(["-incoming", "defer"]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(BenchError::io("cannot start QEMU"))?;
        let mut child = Ended(child);
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            child.goes_on("to listen", deadline)?;
        }
        let mut qmp = Qmp::connect(socket)?;
        let multifd = json!([{ "capability": "multifd", "state": true }]);
        qmp.ask(
            "migrate-set-capabilities",
            json!({ "capabilities": multifd }),
        )?;
        let parameters = json!({ "multifd-channels": self.channels, "max-bandwidth": 0 });
        qmp.ask("migrate-set-parameters", parameters)?;
        Ok(Machine { qmp, child })
    }
}

impl Arm for Qemu {
    fn run(&self, content: &Content) -> Result<Sample, BenchError> {
        let bytes = content.pages().bytes();
        let memory = Destination::new(content, false)?;
        let folder = tempfile::tempdir().map_err(BenchError::io("cannot make a folder"))?;
        let path = |name| folder.path().join(name);
        let mut source = self.start(&path("source"), content.file(), bytes, false)?;
        let mut destination = self.start(&path("destination"), memory.file(), bytes, true)?;
        let listen = json!({ "uri": "tcp:127.0.0.1:0" });
        destination.qmp.ask("migrate-incoming", listen)?;
        let listening = destination.qmp.ask("query-migrate", json!({}))?;
        let port = listening["socket-address"][0]["port"].as_str();
        let port = port.ok_or_else(|| failed("it does not say where it listens".into()))?;
        let target = json!({ "uri": format!("tcp:127.0.0.1:{port}") });
        source.qmp.ask("migrate", target)?;
        let report = source.completed()?;
        destination.completed()?;
        let ms = report["total-time"].as_u64();
        let ms = ms.ok_or_else(|| failed("it does not say how long it took".into()))?;
        let took = Took {
            time: Duration::from_millis(ms.max(1)),
            cpu: None,
        };
        drop((source, destination));
        Ok(Sample {
            wire_bytes: report["ram"]["transferred"].as_u64(),
            ..Sample::new(took, content, Some(&memory))?
        })
    }
}

/// A QEMU whose guest does not run.
pub(super) struct Machine {
    pub(super) qmp: Qmp,
    child: Ended,
}

impl Machine {
    /// What QEMU says about its migration when it has completed.
    pub(super) fn completed(&mut self) -> Result<Value, BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let migration = self.qmp.ask("query-migrate", json!({}))?;
            match migration["status"].as_str() {
                Some("completed") => return Ok(migration),
                Some("failed" | "cancelled") => return Err(failed(migration.to_string())),
                _ => self.child.goes_on("to migrate", deadline)?,
            }
        }
    }
}

/// A process that ends when dropped.
struct Ended(Child);

impl Ended {
    /// Waits a moment. Fails if the process has ended or the time is over.
    fn goes_on(&mut self, what: &str, deadline: Instant) -> Result<(), BenchError> {
        let status = self.0.try_wait();
        if let Some(status) = status.map_err(BenchError::io("cannot wait for QEMU"))? {
            let mut said = String::new();
            if let Some(mut errors) = self.0.stderr.take() {
                // Without its words its exit status must do.
                let _ = std::io::Read::read_to_string(&mut errors, &mut said);
            }
            return Err(failed(format!("it ended with {status}: {}", said.trim())));
        }
        if Instant::now() > deadline {
            return Err(failed(format!("gave up waiting for it {what}")));
        }
        thread::sleep(POLL);
        Ok(())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn failed(said: String) -> BenchError {
    BenchError::Program {
        program: "QEMU",
        said,
    }
}
