// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon under test, seen from outside: by its control socket, and by how much host memory its guest has.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use host_migrator::{ControlClient, DeviceHints, HintError, HintSource};
use rustix::process::{Pid, Signal, kill_process};
use spec::control::{BalloonStatus, HintState, Refusal, Reply, Request, Statistics};
use spec::hint_map::{HintPhase, Tellers};
use tempfile::TempDir;

use super::initramfs::AGENT_KEY;
use super::{PATIENCE, eventually};

/// The names of the daemon's sockets.
const VMM: &str = "vmm";
/// The agent's socket, with the suffix of a hybrid vsock, see [`Device::hybrid_vsock`].
const AGENT: &str = "agent_1024";
const CONTROL: &str = "control";

/// A running `vhost-device-balloon`.
#[derive(Debug)]
pub struct Device {
    daemon: Child,
    folder: TempDir,
    options: Vec<String>,
    control: ControlClient,
}

impl Device {
    /// Starts the daemon with `options` in addition to its sockets. Only root of the guest can open the agent's transport.
    pub fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = [options, &["--agent-transport", "console"]].concat();
        Self::start_in(folder, options.into_iter().map(Into::into).collect())
    }

    /// Starts the daemon with [`AGENT_KEY`] for its agent.
    pub fn start_with_key() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        fs::write(&path, AGENT_KEY).expect("there is room");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
        let path = path.to_str().expect("a folder for tests has a plain name");
        let options = vec!["--agent-key".into(), path.into()];
        Self::start_in(folder, options)
    }

    fn start_in(folder: TempDir, options: Vec<String>) -> Self {
        let (daemon, control) = start(folder.path(), &options);
        Self {
            daemon,
            folder,
            options,
            control,
        }
    }

    /// Kills the daemon and starts another one in its place.
    pub fn restart(&mut self) {
        self.end();
        for socket in [self.socket(), self.agent_socket(), self.control_socket()] {
            // A killed daemon leaves its sockets behind.
            let _ = fs::remove_file(socket);
        }
        (self.daemon, self.control) = start(self.folder.path(), &self.options);
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(VMM)
    }

    /// The agent's socket, to which a VMM connects the guest's port.
    pub fn agent_socket(&self) -> PathBuf {
        self.folder.path().join(AGENT)
    }

    /// The path for a hybrid vsock: a guest's connection to port 1024 of the host goes to the agent's socket.
    pub fn hybrid_vsock(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    fn control_socket(&self) -> PathBuf {
        self.folder.path().join(CONTROL)
    }

    /// The file that is the disk of the device's guests, if there is one when they boot.
    pub fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// A folder for files of the device's guests.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends a request on a new control connection.
    pub fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        match self.control.ask(request, None) {
            Ok(reply) => Ok(reply),
            Err(HintError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{request:?}: {error}"),
        }
    }

    /// The balloon's target, size and counters.
    pub fn status(&mut self) -> BalloonStatus {
        match self.ask(Request::BalloonStatus) {
            Ok(Reply::BalloonStatus(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `condition` holds for the status, and returns the status.
    pub fn wait_until(
        &mut self,
        what: &str,
        condition: impl Fn(&BalloonStatus) -> bool,
    ) -> BalloonStatus {
        eventually(what, || Some(self.status()).filter(&condition))
    }

    /// Waits until a guest's driver has started the device.
    pub fn wait_for_driver(&mut self) -> BalloonStatus {
        self.wait_until("the driver", |status| {
            status.running && status.negotiated != 0
        })
    }

    /// Asks the guest to have `bytes` in the balloon, and does not wait for it.
    pub fn set_target(&mut self, bytes: u64) {
        let pages = u32::try_from(bytes / spec::PAGE_SIZE).expect("a size for a balloon");
        assert_eq!(self.ask(Request::SetTarget { pages }), Ok(Reply::Ok));
    }

    /// Waits until the guest has `bytes` in the balloon and says so.
    pub fn wait_for_size(&mut self, bytes: u64) -> BalloonStatus {
        let pages = bytes / spec::PAGE_SIZE;
        let what = format!("{pages} pages in the balloon");
        self.wait_until(&what, |status| {
            status.actual_pages == pages && status.ballooned_pages == pages
        })
    }

    /// The guest's newest statistics, if there are any.
    pub fn statistics(&mut self) -> Option<Statistics> {
        match self.ask(Request::Statistics) {
            Ok(Reply::Statistics(statistics)) => Some(statistics),
            Err(Refusal::NoStatistics) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Starts or stops a round of hints for a person, or reads its state.
    pub fn hints(&mut self, request: Request) -> Result<HintState, Refusal> {
        match self.ask(request)? {
            Reply::HintState(state) => Ok(state),
            other => panic!("{request:?}: {other:?}"),
        }
    }

    /// Asks the guest for all its hints, without ending the round: the guest holds its hinted pages.
    pub fn hint_all(&mut self) -> HintState {
        self.hints(Request::HintStart).expect("the guest is asked");
        eventually("the guest's hints", || {
            let state = self.hints(Request::HintState).expect("a state");
            (state.phase == HintPhase::Finished).then_some(state)
        })
    }

    /// A migrator's connection, for a guest whose memory ends below `pages`.
    pub fn migrator(&self, pages: u64) -> DeviceHints {
        self.migrator_for(pages, Tellers::ALL)
    }

    /// The same, for a migrator that asks only `tellers`.
    pub fn migrator_for(&self, pages: u64, tellers: Tellers) -> DeviceHints {
        let mut hints = DeviceHints::connect(self.control_socket()).expect("the device answers");
        hints.prepare(pages, tellers).expect("it takes a map");
        hints
    }

    /// Bytes of host memory that the guest has now: the blocks of the largest file that the daemon has open, which is guest
    /// memory.
    pub fn host_memory(&self) -> u64 {
        let folder = format!("/proc/{}/fd", self.daemon.id());
        fs::read_dir(folder)
            .expect("the daemon runs")
            .filter_map(|entry| fs::metadata(entry.ok()?.path()).ok())
            .filter(|file| file.is_file())
            .max_by_key(MetadataExt::size)
            .map_or(0, |file| file.blocks() * 512)
    }

    /// Waits until the guest has less than `bytes` of the host's memory.
    pub fn wait_for_host_memory_below(&self, bytes: u64) {
        let what = format!("less than {} MiB in use on the host", bytes >> 20);
        eventually(&what, || (self.host_memory() < bytes).then_some(()));
    }

    /// Checks that no request of the stock driver was refused or failed, and that the daemon runs.
    pub fn check(&mut self) {
        let status = self.status();
        let refused = (
            status.bad_buffers,
            status.out_of_range,
            status.failed_discards,
        );
        assert_eq!(refused, (0, 0, 0), "{status:?}");
    }

    /// Ends the daemon as a service manager does, with SIGTERM.
    pub fn stop(mut self) {
        let daemon = Pid::from_child(&self.daemon);
        kill_process(daemon, Signal::TERM).expect("it is ours");
        let status = self.daemon.wait().expect("it is ours");
        assert!(status.success(), "{status}");
    }

    /// Kills the daemon.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The process may have ended by itself.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if thread::panicking() {
            match self.daemon.try_wait() {
                Ok(None) => {
                    let status = self.control.ask(Request::BalloonStatus, None);
                    println!("the device: {status:?}");
                }
                ended => println!("the daemon has ended: {ended:?}"),
            }
        }
        self.end();
    }
}

/// Starts the daemon with its sockets in `folder`, and waits until it listens.
fn start(folder: &Path, options: &[String]) -> (Child, ControlClient) {
    let mut command = Command::new(program());
    for (option, name) in [
        ("--socket-path", VMM),
        ("--agent-socket", AGENT),
        ("--control-socket", CONTROL),
    ] {
        command.arg(option).arg(folder.join(name));
    }
    // No round limit: an emulated guest may be slow, and the tests check the pages that it holds.
    command.args(["--hint-round-limit", "0"]);
    let daemon = command.args(options).spawn().expect("the daemon starts");
    let control = eventually("the control socket", || {
        ControlClient::connect(&folder.join(CONTROL), PATIENCE).ok()
    });
    eventually("the VMM's sockets", || {
        let are_there = [VMM, AGENT].iter().all(|name| folder.join(name).exists());
        are_there.then_some(())
    });
    (daemon, control)
}

/// The daemon that `tests/run` builds.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own program");
    let folder = test.ancestors().nth(2);
    let program = folder.map(|folder| folder.join("vhost-device-balloon"));
    program
        .filter(|program| program.exists())
        .expect("the daemon is built: `cargo build -p vhost-device-balloon`")
}
