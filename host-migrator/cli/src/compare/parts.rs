// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processes of a comparison: source, destination, and a balloon device for each.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::CompareError;
use crate::control::{self, Client};
use crate::machine::Status;
use crate::trace::TraceArgs;

/// How long a process may take to make its socket.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a state is polled.
const POLL: Duration = Duration::from_millis(10);

/// This program, started again for another job. Ends when dropped.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Part {
    /// Starts `lacuna ARGS`. Its standard error goes to a file in `folder`.
    ///
    /// # Errors
    /// [`CompareError::Start`] if it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        name: &'static str,
        program: &Path,
        folder: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, CompareError> {
        let log = folder.join(format!("{name}.log"));
        let spawn = || -> io::Result<Child> {
            let mut command = Command::new(program);
            command
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(&log)?);
            // Its own process group: Ctrl-C at the terminal ends this process first, and this process ends the others.
            command.process_group(0).env(crate::ENDS_WITH_PARENT, "1");
            command.spawn()
        };
        match spawn() {
            Ok(child) => Ok(Self { name, child, log }),
            Err(source) => Err(CompareError::Start { name, source }),
        }
    }

    /// Waits until `path` is there.
    ///
    /// # Errors
    /// [`CompareError::Died`] if the process ends first, [`CompareError::Timeout`] if it takes too long.
    pub fn wait_for_socket(&mut self, path: &Path) -> Result<(), CompareError> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !path.exists() {
            self.still_alive()?;
            if Instant::now() > deadline {
                return Err(CompareError::Timeout {
                    what: format!("the {} to start", self.name),
                });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Checks that the process still runs.
    ///
    /// # Errors
    /// [`CompareError::Died`] with the last lines of its log.
    pub fn still_alive(&mut self) -> Result<(), CompareError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(CompareError::Died {
                name: self.name,
                status,
                said: self.last_words(),
            }),
            Err(source) => Err(CompareError::Start {
                name: self.name,
                source,
            }),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        // Without a log there is nothing to quote.
        let _ = File::open(&self.log).and_then(|mut log| log.read_to_string(&mut text));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the guest has a virtio-console port for its agent, connected to the balloon device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentPort {
    /// No.
    #[default]
    Absent,
    /// Yes. Source and destination must have the same value.
    Present,
}

/// A machine and its balloon device.
#[derive(Debug)]
pub struct Host {
    /// The machine's process.
    pub machine: Part,
    /// The balloon device's process.
    pub device: Part,
    /// The machine's control socket.
    pub control: PathBuf,
    /// The balloon device's control socket.
    pub balloon_control: PathBuf,
    /// Where the guest's console goes.
    pub console: PathBuf,
}

impl Host {
    /// Starts a balloon device with the flags `device` and, when it is up, the machine that `job` describes.
    /// `names` are the names of device and machine in messages and files. Both record in `trace`, if there is one.
    /// If the guest has an `agent`, its port is connected to the device.
    ///
    /// # Errors
    /// [`CompareError`] if one of them does not come up.
    pub fn start(
        program: &Path,
        folder: &Path,
        names: (&'static str, &'static str),
        job: Vec<OsString>,
        device: &[&str],
        agent: AgentPort,
        trace: &TraceArgs,
    ) -> Result<Self, CompareError> {
        let socket = |what: &str| folder.join(format!("{}-{what}", names.0));
        let (vhost, hints, control) = (socket("vhost"), socket("hints"), socket("control"));
        let console = socket("console");
        let mut both = trace.to_args();
        if agent == AgentPort::Present {
            both.extend(["--agent-socket".into(), socket("agent").into()]);
        }
        let mut device_args: Vec<&OsStr> = vec![
            "balloon".as_ref(),
            "device".as_ref(),
            "--socket-path".as_ref(),
            vhost.as_ref(),
            "--control-socket".as_ref(),
            hints.as_ref(),
        ];
        if agent == AgentPort::Present {
            device_args.extend(["--agent-transport", "console"].map(OsStr::new));
        }
        device_args.extend(device.iter().map(OsStr::new));
        device_args.extend(both.iter().map(OsString::as_os_str));
        let mut device = Part::start(names.1, program, folder, device_args)?;
        device.wait_for_socket(&vhost)?;
        device.wait_for_socket(&hints)?;
        let mut args = job;
        args.extend(both.iter().cloned());
        for (flag, path) in [
            ("--balloon", &vhost),
            ("--balloon-control", &hints),
            ("--control", &control),
            ("--console", &console),
        ] {
            args.push(flag.into());
            args.push(path.into());
        }
        let mut machine = Part::start(names.0, program, folder, args)?;
        machine.wait_for_socket(&control)?;
        Ok(Self {
            machine,
            device,
            control,
            balloon_control: hints,
            console,
        })
    }

    /// A connection to the machine.
    ///
    /// # Errors
    /// [`CompareError::Control`] if it does not answer.
    pub fn client(&self) -> Result<Client, CompareError> {
        Ok(Client::connect(&self.control)?)
    }

    /// Polls the machine's status until `ready` returns a value.
    ///
    /// # Errors
    /// [`CompareError`] if the process ends, `ready` fails, or `timeout` passes.
    pub fn wait_until(
        &mut self,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut(&Status) -> Result<bool, CompareError>,
    ) -> Result<Status, CompareError> {
        let deadline = Instant::now() + timeout;
        let mut client = self.client()?;
        loop {
            self.machine.still_alive()?;
            let status: Status = client.ask(&control::Command::Status)?;
            if ready(&status)? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(CompareError::Timeout {
                    what: what.to_owned(),
                });
            }
            thread::sleep(POLL);
        }
    }
}
