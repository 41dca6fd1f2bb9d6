// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our device in a process of its own, which runs this program.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use host_migrator::ControlClient;
use spec::PAGE_SIZE;
use spec::control::{BalloonStatus, Reply, Request};

/// The arguments of `lacuna` that start the device.
pub const JOB: &str = "balloon";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(10);
const VHOST_USER: &str = "vhost-user";
const CONTROL: &str = "control";

/// The device's process, and a control connection to it.
pub struct OwnDevice {
    process: Child,
    folder: PathBuf,
    control: Option<ControlClient>,
}

impl OwnDevice {
    /// Starts it with `flags` and waits until it listens.
    pub fn start(folder: &Path, flags: &[&str]) -> Result<Self, Box<dyn Error>> {
        let process = Command::new(std::env::current_exe()?)
            .args([JOB, "device", "--once", "--socket-path"])
            .arg(folder.join(VHOST_USER))
            .arg("--control-socket")
            .arg(folder.join(CONTROL))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let device = Self {
            process,
            folder: folder.to_owned(),
            control: None,
        };
        let end = Instant::now() + START_LIMIT;
        while !device.socket().exists() {
            if Instant::now() > end {
                return Err("our device does not start".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(device)
    }

    /// Its vhost-user socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(VHOST_USER)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Connects to its control socket.
    pub fn connect(mut self) -> Result<Self, Box<dyn Error>> {
        let socket = self.folder.join(CONTROL);
        self.control = Some(ControlClient::connect(&socket, PATIENCE)?);
        Ok(self)
    }

    /// Asks the guest to give `bytes` back.
    pub fn set_target(&mut self, bytes: u64) -> Result<(), Box<dyn Error>> {
        let pages = u32::try_from(bytes / PAGE_SIZE)?;
        self.ask(Request::SetTarget { pages }).map(drop)
    }

    /// Bytes that the guest says are in the balloon.
    pub fn inflated(&mut self) -> Result<u64, Box<dyn Error>> {
        Ok(self.balloon()?.actual_pages * PAGE_SIZE)
    }

    /// Pages that the guest has reported as free.
    pub fn reported(&mut self) -> Result<u64, Box<dyn Error>> {
        Ok(self.balloon()?.reported_pages)
    }

    /// Asks the guest for hints.
    pub fn start_hints(&mut self) -> Result<(), Box<dyn Error>> {
        self.ask(Request::HintStart).map(drop)
    }

    /// Pages that the guest has hinted.
    pub fn hinted(&mut self) -> Result<u64, Box<dyn Error>> {
        match self.ask(Request::Status)? {
            Reply::Status(status) => Ok(status.pages),
            other => Err(format!("expected the device's status, got {other:?}").into()),
        }
    }

    fn balloon(&mut self) -> Result<BalloonStatus, Box<dyn Error>> {
        match self.ask(Request::BalloonStatus)? {
            Reply::BalloonStatus(status) => Ok(status),
            other => Err(format!("expected the balloon's status, got {other:?}").into()),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Box<dyn Error>> {
        let control = self.control.as_mut().ok_or("no connection to our device")?;
        Ok(control.ask(request, None)?)
    }
}

impl Drop for OwnDevice {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
