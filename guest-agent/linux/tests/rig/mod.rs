// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's end: a pseudo-terminal whose other end the real agent opens as its character device.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use spec::PageRange;
use spec::agent::proof::Proof;
use spec::agent::{Answer, Ask, Deframer, Settings, Totals};
use tempfile::TempDir;

/// A time limit that only a failure reaches.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the tests can read page flags on this machine. If not, prints that.
pub fn page_flags_can_be_read() -> bool {
    let result = File::open("/proc/kpageflags").and_then(|mut file| file.read_exact(&mut [0; 8]));
    if let Err(error) = &result {
        spec_testing::skipped(format_args!(
            "/proc/kpageflags cannot be read here: {error}"
        ));
    }
    result.is_ok()
}

/// An answer, as far as the tests use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    Hello(Settings),
    Map(u64, Vec<PageRange>),
    End(u64, Totals),
    Proof(Proof),
}

/// A pseudo-terminal. Its first end is the host's.
pub struct Host {
    terminal: File,
    /// Keeps the terminal alive while the agent has not opened it.
    _other_end: OwnedFd,
    input: Box<Deframer>,
}

impl Host {
    /// A new terminal. `link` becomes a symbolic link to its other end.
    pub fn at(link: &Path) -> io::Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        let name = ptsname(&terminal, Vec::new())?;
        let other_end = open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY,
            Mode::empty(),
        )?;
        let mut settings = tcgetattr(&other_end)?;
        settings.make_raw();
        tcsetattr(&other_end, OptionalActions::Now, &settings)?;
        let _ = fs::remove_file(link);
        std::os::unix::fs::symlink(name.to_str().map_err(io::Error::other)?, link)?;
        Ok(Self {
            terminal: File::from(terminal),
            _other_end: other_end,
            input: Box::default(),
        })
    }

    pub fn ask(&mut self, ask: Ask) {
        self.send(&ask.to_frame());
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.terminal.write_all(bytes).unwrap();
    }

    /// The next answer of the agent.
    pub fn next(&mut self) -> Got {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.input.next_frame() {
                if let Some(proof) = Proof::read(&frame) {
                    return Got::Proof(proof);
                }
                return match Answer::read(&frame).unwrap() {
                    Answer::Hello(settings) => Got::Hello(settings),
                    Answer::Map { epoch, map } => Got::Map(epoch, map.runs().collect()),
                    Answer::End { epoch, totals } => Got::End(epoch, totals),
                    Answer::Failed { errno, .. } => panic!("the agent failed: error {errno}"),
                };
            }
            assert!(Instant::now() < deadline, "the agent does not answer");
            let mut polled = [PollFd::from_borrowed_fd(
                self.terminal.as_fd(),
                PollFlags::IN,
            )];
            let second = Timespec::try_from(Duration::from_secs(1)).unwrap();
            if poll(&mut polled, Some(&second)).unwrap() != 0 {
                let count = self.terminal.read(self.input.space()).unwrap();
                self.input.filled(count);
            }
        }
    }

    /// The whole answer to `epoch`: all free runs, and the totals. Hellos are ignored.
    pub fn map_of(&mut self, epoch: u64) -> (Vec<PageRange>, Totals) {
        let mut free = Vec::new();
        loop {
            match self.next() {
                Got::Map(of, runs) if of == epoch => free.extend(runs),
                Got::End(of, totals) if of == epoch => return (free, totals),
                Got::Hello(_) => {}
                other => panic!("{other:?} while epoch {epoch} was asked for"),
            }
        }
    }
}

/// The real agent as a process of its own.
pub struct Agent(Child);

impl Agent {
    pub fn start(port: &Path, flags: &[&str]) -> Self {
        Self(Self::command(port, flags).spawn().unwrap())
    }

    /// Starts the agent with its log in the file `log`.
    pub fn start_with_log(port: &Path, flags: &[&str], log: &Path) -> Self {
        let mut command = Self::command(port, flags);
        let log = File::create(log).unwrap();
        Self(command.stderr(log).spawn().unwrap())
    }

    fn command(port: &Path, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna-agent"));
        command.arg("--port").arg(port).args(flags);
        command
    }

    /// A line of its `/proc/PID/status`, in kB.
    pub fn status_kb(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn wait(&mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host that the real agent serves.
pub struct Served {
    pub agent: Agent,
    pub host: Host,
    link: PathBuf,
    _folder: TempDir,
}

impl Served {
    /// Disconnects the host, and replaces it by another.
    pub fn come_again(&mut self) {
        self.host = Host::at(&self.link).unwrap();
    }
}

/// A host, and the agent started with `flags` to serve it; `None` if the agent cannot read page flags.
pub fn served(flags: &[&str]) -> Option<Served> {
    if !page_flags_can_be_read() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("port");
    let host = Host::at(&link).unwrap();
    Some(Served {
        agent: Agent::start(&link, flags),
        host,
        link,
        _folder: folder,
    })
}
