// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The back end's process, and the migrator's end of its control socket.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::Parser;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use spec::balloon::CommandId;
use spec::control::{
    BalloonStatus, EpochReport, HEADER_BYTES, Header, MAX_PAYLOAD, Reply, Request, VERSION,
};
use spec::hint_map;
use vhost_device_balloon::{Args, sockets};

use crate::rig::{PATIENCE, eventually};

/// Tells this program to be the daemon, and where.
const FOLDER: &str = "BALLOON_DAEMON_FOLDER";

/// A daemon process; ends with the test.
pub struct Daemon {
    process: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts one, which will listen soon.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = start_in(folder.path());
        Self { process, folder }
    }

    /// Where it takes a front end.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("vhost-user")
    }

    /// Starts another in the place of one that has ended.
    pub fn start_again(&mut self) {
        self.process = start_in(self.folder.path());
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Makes it hang; it does when this returns.
    pub fn freeze(&self) {
        let process = Pid::from_child(&self.process);
        kill_process(process, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(process), WaitOptions::UNTRACED)
            .unwrap()
            .unwrap();
        assert!(status.stopped());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start_in(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon::process_of_the_daemon", "--nocapture"])
        .env(FOLDER, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a claim: the test program started by [`Daemon::start`] is the daemon.
#[test]
fn process_of_the_daemon() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let path = |name| folder.join(name).into_os_string();
    let line = [
        "vhost-device-balloon".into(),
        "--once".into(),
        "--free-page-reporting".into(),
        "--socket-path".into(),
        path("vhost-user"),
        "--control-socket".into(),
        path("control"),
    ];
    let config = Args::parse_from(line).device.into();
    vhost_device_balloon::run(config).unwrap();
}

/// A migrator that opens and closes epochs.
pub struct Migrator {
    stream: UnixStream,
    sequence: u32,
}

impl Migrator {
    /// Connects and hands a map for `pages` pages over.
    pub fn connect(daemon: &Daemon, pages: u64) -> Self {
        let path = daemon.folder.path().join("control");
        let stream = eventually("the control socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut migrator = Self {
            stream,
            sequence: 0,
        };
        migrator.ask(Request::Hello { version: VERSION }, &[]);
        let bytes = hint_map::bytes_for(pages).unwrap();
        let map = map_file(bytes, pages);
        let taken = migrator.ask(Request::SetHintMap { bytes }, &[map]);
        assert_eq!(taken, Reply::Ok);
        migrator
    }

    pub fn open(&mut self, epoch: u64) -> CommandId {
        match self.ask(Request::Open { epoch }, &[]) {
            Reply::Opened { command_id } => command_id,
            other => panic!("epoch {epoch} is not open: {other:?}"),
        }
    }

    pub fn close(&mut self, epoch: u64) -> EpochReport {
        match self.ask(Request::Close { epoch }, &[]) {
            Reply::Closed(report) => report,
            other => panic!("epoch {epoch} is not closed: {other:?}"),
        }
    }

    pub fn balloon(&mut self) -> BalloonStatus {
        match self.ask(Request::BalloonStatus, &[]) {
            Reply::BalloonStatus(status) => status,
            other => panic!("no status of the balloon: {other:?}"),
        }
    }

    pub fn set_target(&mut self, pages: u32) {
        let reply = self.ask(Request::SetTarget { pages }, &[]);
        assert_eq!(reply, Reply::Ok);
    }

    fn ask(&mut self, request: Request, fds: &[OwnedFd]) -> Reply {
        self.sequence += 1;
        let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
        let length = request.encode(self.sequence, &mut frame);
        sockets::send(&self.stream, &frame[..length], fds).unwrap();
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).unwrap();
        let header = Header::from_bytes(&header).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Reply::decode(&header, &payload).unwrap()
    }
}

fn map_file(bytes: u64, pages: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("hint-map", flags).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    for (word, value) in [hint_map::MAGIC, hint_map::VERSION, pages]
        .iter()
        .enumerate()
    {
        rustix::io::pwrite(&file, &value.to_le_bytes(), word as u64 * 8).unwrap();
    }
    file
}
