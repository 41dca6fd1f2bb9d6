// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with a balloon driver, and its front end, connected to a daemon process.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use spec::balloon::{CommandId, Config, feature};
use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::migrator::memfd;
use super::queue::{QUEUE_BYTES, Queue, memory_table};
use super::{PATIENCE, eventually};

pub type Memory = Arc<GuestMemoryMmap>;

pub const MIB: u64 = 1 << 20;
/// Two regions with a hole between them. The queues lie at the start of the first.
pub const LOW: (u64, u64) = (0, 16 * MIB);
pub const HIGH: (u64, u64) = (32 * MIB, 16 * MIB);
/// The hint map's pages: all up to the end of the second region.
pub const PAGES: u64 = (48 * MIB) / 4096;

pub const VERSION_1: u64 = 1 << feature::VERSION_1;
pub const STATS: u64 = 1 << feature::STATS_VQ;
pub const HINT: u64 = 1 << feature::FREE_PAGE_HINT;
pub const REPORTING: u64 = 1 << feature::REPORTING;
pub const POISON: u64 = 1 << feature::PAGE_POISON;
pub const PROTOCOL: u64 = 1 << 30;
pub const LOG_ALL: u64 = 1 << 26;
/// The features that the stock Linux driver takes.
pub const USUAL: u64 = VERSION_1 | STATS | HINT | PROTOCOL;

/// The device's program and its first arguments: that of this package's tests, or the command `lacuna` for the package
/// that borrows the rig.
const DEVICE: (&str, &[&str]) = match (
    option_env!("CARGO_BIN_EXE_vhost-device-balloon"),
    option_env!("CARGO_BIN_EXE_lacuna"),
) {
    (Some(program), _) => (program, &[]),
    (None, Some(program)) => (program, &["balloon", "device"]),
    (None, None) => panic!("cargo gives every test the programs of its package"),
};

/// The log file in a daemon's folder.
const LOG: &str = "log";

/// A daemon process. It is ended with the test.
pub struct Daemon {
    pub process: Child,
    pub folder: tempfile::TempDir,
}

impl Daemon {
    pub fn start(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), flags)
    }

    /// Starts a daemon that logs into a file.
    pub fn start_with_log(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join(LOG)).unwrap();
        Self::start_as(folder, flags, log.into())
    }

    /// What the daemon of [`Daemon::start_with_log`] has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(LOG)).unwrap()
    }

    fn start_in(folder: tempfile::TempDir, flags: &[&str]) -> Self {
        Self::start_as(folder, flags, Stdio::inherit())
    }

    fn start_as(folder: tempfile::TempDir, flags: &[&str], log: Stdio) -> Self {
        let (program, first) = DEVICE;
        let process = Command::new(program)
            .args(first)
            .arg("--socket-path")
            .arg(folder.path().join("vhost-user"))
            .arg("--control-socket")
            .arg(folder.path().join("control"))
            .args(flags)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, folder }
    }

    /// Starts a daemon whose guest may have an agent, over a port that only the guest's root can open.
    pub fn start_with_agent() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let socket = socket.to_str().unwrap();
        let transport = ["--agent-transport", "console"];
        Self::start_in(
            folder,
            &[&["--agent-socket", socket], &transport[..]].concat(),
        )
    }

    /// Starts a daemon whose guest's agent uses a transport that every process of the guest can reach, and must prove
    /// that it has `key`.
    pub fn start_with_agent_key(key: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [socket, file] = ["agent", "key"].map(|name| folder.path().join(name));
        fs::write(&file, key).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let [socket, file] = [&socket, &file].map(|path| path.to_str().unwrap());
        Self::start_in(folder, &["--agent-socket", socket, "--agent-key", file])
    }

    /// How many file descriptors the daemon has open.
    pub fn descriptors(&self) -> usize {
        spec_testing::open_files(self.process.id())
    }

    /// The host's end of the agent's port.
    pub fn agent(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    pub fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    pub fn connect(&self) -> UnixStream {
        let path = self.folder.path().join("vhost-user");
        eventually("the daemon's socket", || UnixStream::connect(&path).ok())
    }

    /// Whether the daemon still runs.
    pub fn lives(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A front end with a guest whose driver has started.
pub struct Guest {
    pub front_end: Frontend,
    pub memory: Memory,
    pub hints: Queue,
    /// Where the device's messages of configuration changes arrive.
    pub notices: UnixStream,
}

impl Guest {
    /// Connects, negotiates `features` and starts the hint queue with number `hint_queue`.
    pub fn boot(daemon: &Daemon, features: u64, hint_queue: usize) -> Self {
        let mut guest = Self::negotiate(daemon, features, hint_queue);
        guest.hints.start(&mut guest.front_end, 0);
        guest
    }

    /// As [`Guest::boot`], but no ring runs yet.
    pub fn negotiate(daemon: &Daemon, features: u64, hint_queue: usize) -> Self {
        Self::negotiate_over(daemon.connect(), features, hint_queue)
    }

    /// As [`Guest::negotiate`], over the connection `stream`.
    pub fn negotiate_over(stream: UnixStream, features: u64, hint_queue: usize) -> Self {
        Self::with_memory(stream, features, hint_queue, guest_memory(&[LOW, HIGH]))
    }

    /// As [`Guest::negotiate_over`], with memory that the test provides.
    pub fn with_memory(
        stream: UnixStream,
        features: u64,
        hint_queue: usize,
        memory: GuestMemoryMmap,
    ) -> Self {
        let memory = Arc::new(memory);
        let mut front_end = Frontend::from_stream(stream, 5);
        front_end.set_owner().unwrap();
        let offered = front_end.get_features().unwrap();
        assert_eq!(offered & features, features, "offered {offered:#x}");
        front_end.set_features(features).unwrap();
        let protocol = front_end.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        assert!(protocol.contains(wanted));
        front_end.set_protocol_features(wanted).unwrap();
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front_end.set_mem_table(&memory_table(&memory)).unwrap();
        let (notices, channel) = UnixStream::pair().unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        front_end.set_backend_request_fd(&channel).unwrap();
        Self {
            front_end,
            hints: Queue::new(Arc::clone(&memory), hint_queue, 0),
            memory,
            notices,
        }
    }

    /// Another queue of the guest, in an unused part of its memory.
    pub fn queue(&self, index: usize) -> Queue {
        let base = (index as u64 + 1) * QUEUE_BYTES;
        Queue::new(Arc::clone(&self.memory), index, base)
    }

    pub fn config(&mut self) -> Config {
        self.config_if_there().expect("the device is there")
    }

    /// As [`Guest::config`]; `None` if the device has gone.
    fn config_if_there(&mut self) -> Option<Config> {
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, bytes) = self.front_end.get_config(0, 16, flags, &[0; 16]).ok()?;
        Some(Config::from_bytes(bytes.as_slice().try_into().unwrap()))
    }

    /// Waits for a configuration change message and reads the configuration, as a driver does.
    pub fn wait_for_change(&mut self) -> Config {
        self.wait_for_last_change().expect("the device is there")
    }

    /// As [`Guest::wait_for_change`]; `None` if the device has gone before the configuration was read.
    pub fn wait_for_last_change(&mut self) -> Option<Config> {
        let mut message = [0; 12];
        self.notices
            .read_exact(&mut message)
            .expect("a configuration change message");
        assert_eq!(message[..4], 2u32.to_le_bytes());
        assert_eq!(message[8..], [0; 4]);
        self.config_if_there()
    }

    /// Gives the device another socket for messages of configuration changes. Returns whether the device sends a
    /// message before it answers. That message is read.
    pub fn renew_notices(&mut self) -> bool {
        let (notices, channel) = UnixStream::pair().unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        self.front_end.set_backend_request_fd(&channel).unwrap();
        self.notices = notices;
        !self.is_left_alone()
    }

    /// Whether no configuration change message is waiting.
    pub fn is_left_alone(&self) -> bool {
        self.notices.set_nonblocking(true).unwrap();
        let nothing = (&self.notices)
            .read(&mut [0; 12])
            .is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        self.notices.set_nonblocking(false).unwrap();
        nothing
    }

    /// Fills the page at `address` with something.
    pub fn use_page(&self, address: u64) {
        let page = [0x5a; 4096];
        self.memory
            .write_slice(&page, GuestAddress(address))
            .unwrap();
    }

    /// Whether the page at `address` has what [`Guest::use_page`] wrote. If not, it has zeros.
    pub fn is_in_use(&self, address: u64) -> bool {
        let mut page = [0; 4096];
        self.memory
            .read_slice(&mut page, GuestAddress(address))
            .unwrap();
        let filled = page == [0x5a; 4096];
        assert!(
            filled || page == [0; 4096],
            "the page at {address:#x} was discarded in part"
        );
        filled
    }

    /// Answers the published id, as a driver does first in a round.
    pub fn start_round(&mut self, id: CommandId) {
        let command = self.hints.command(&id.get().to_le_bytes());
        self.hints.send(&[command]);
    }
}

/// Memory with regions of these starts and sizes, each in a file of its own.
pub fn guest_memory(regions: &[(u64, u64)]) -> GuestMemoryMmap {
    let regions = regions.iter().map(|&(start, bytes)| {
        let file = FileOffset::new(memfd(bytes).into(), 0);
        (GuestAddress(start), bytes as usize, Some(file))
    });
    GuestMemoryMmap::from_ranges_with_files(regions).unwrap()
}
