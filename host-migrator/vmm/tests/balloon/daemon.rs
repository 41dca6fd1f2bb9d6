// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The back end's process, and the migrator's end of its control socket.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::Parser;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use spec::control::{BalloonStatus, Reply, Request};
use spec_testing::control::Client;
use spec_testing::memory_file::hint_map;
use vhost_device_balloon::Args;

/// The environment variable that turns this program into the daemon. Its value is the folder of the sockets.
const FOLDER: &str = "BALLOON_DAEMON_FOLDER";

/// A daemon process. It is ended with the test.
pub struct Daemon {
    process: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts a daemon, which will listen soon.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = start_in(folder.path());
        Self { process, folder }
    }

    /// Its vhost-user socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("vhost-user")
    }

    /// Starts a daemon in place of one that has ended.
    pub fn start_again(&mut self) {
        self.process = start_in(self.folder.path());
    }

    /// Kills the daemon, as in a crash.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Stops the daemon with SIGSTOP, and waits until it is stopped.
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

/// Not a test: when [`Daemon::start`] runs this program, this is the daemon.
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
pub struct Migrator(Client);

impl Migrator {
    /// Connects and hands over a map for `pages` pages.
    pub fn connect(daemon: &Daemon, pages: u64) -> Self {
        let mut client = Client::connect(&daemon.folder.path().join("control"));
        client.hello();
        let (file, bytes) = hint_map(pages);
        client.give_map(file, bytes);
        Self(client)
    }

    pub fn balloon(&mut self) -> BalloonStatus {
        match self.ask(Request::BalloonStatus) {
            Reply::BalloonStatus(status) => status,
            other => panic!("no status of the balloon: {other:?}"),
        }
    }

    pub fn set_target(&mut self, pages: u32) {
        let reply = self.ask(Request::SetTarget { pages });
        assert_eq!(reply, Reply::Ok);
    }
}

impl Deref for Migrator {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl DerefMut for Migrator {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.0
    }
}
