// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end that can send any bytes.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use spec_testing::process::{open_files, threads};
use spec_testing::vhost_user::message;
use vhost_device_balloon::sockets;

use crate::rig::guest::{Daemon, USUAL};
use crate::rig::{PATIENCE, eventually};

pub use spec_testing::bytes::{longs, words};

// Headers and numbers are written again from the specification and not taken from the device, so that a misreading in
// the device shows.

pub const NEED_REPLY: u32 = 1 << 3;
/// All protocol features of the device: `MQ`, `LOG_SHMFD`, `REPLY_ACK`, `BACKEND_REQ`, `CONFIG`, `RESET_DEVICE`,
/// `CONFIGURE_MEM_SLOTS`, `DEVICE_STATE`.
pub const PROTOCOL_FEATURES: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 19;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_DEVICE_STATE_FD: u32 = 42;
pub const CHECK_DEVICE_STATE: u32 = 43;
/// One more than the last defined request.
pub const REQUESTS: u32 = 46;

/// A connection.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn connect(daemon: &Daemon) -> Self {
        let stream = daemon.connect();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Connects and takes every protocol feature and the usual features.
    pub fn negotiate(daemon: &Daemon) -> Self {
        let mut raw = Self::connect(daemon);
        raw.ask(GET_FEATURES, &[]);
        raw.ask(GET_PROTOCOL_FEATURES, &[]);
        raw.send(
            SET_PROTOCOL_FEATURES,
            1,
            &PROTOCOL_FEATURES.to_le_bytes(),
            &[],
        );
        raw.send(SET_OWNER, 1, &[], &[]);
        assert_eq!(raw.order(SET_FEATURES, &USUAL.to_le_bytes(), &[]), Some(0));
        raw
    }

    /// Sends a message. The device may have hung up.
    pub fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[OwnedFd]) {
        let _ = self.try_send(request, flags, payload, fds);
    }

    pub fn try_send(
        &mut self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[OwnedFd],
    ) -> std::io::Result<()> {
        sockets::send(&self.0, &message(request, flags, payload), fds)
    }

    /// Sends any bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The next answer's payload, or `None` if the device has hung up.
    pub fn answer(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        let mut payload = Vec::new();
        let read = self.0.read_exact(&mut header).and_then(|()| {
            let size = u32::from_le_bytes(header[8..].try_into().unwrap());
            payload.resize(size as usize, 0);
            self.0.read_exact(&mut payload)
        });
        match read {
            Ok(()) => Some(payload),
            Err(error) => {
                let gone = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
                assert!(gone.contains(&error.kind()), "no answer: {error}");
                None
            }
        }
    }

    /// Sends a request and returns its answer's payload.
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.send(request, 1, payload, &[]);
        self.answer().expect("an answer")
    }

    /// Sends a request that wants an acknowledgement. Returns 0 for success, `None` if the device has hung up.
    pub fn order(&mut self, request: u32, payload: &[u8], fds: &[OwnedFd]) -> Option<u64> {
        self.send(request, 1 | NEED_REPLY, payload, fds);
        let answer = self.answer()?;
        Some(u64::from_le_bytes(answer.try_into().unwrap()))
    }

    /// Whether the device hangs up, perhaps after some answers.
    pub fn hangs_up(mut self) -> bool {
        loop {
            match self.0.read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

/// What the daemon process has open: file descriptors, mappings, threads.
pub fn open_in(daemon: &Daemon) -> [usize; 3] {
    let process = daemon.process.id();
    let maps = || std::fs::read_to_string(format!("/proc/{process}/maps"));
    let maps = spec_testing::seen_of_process(maps);
    [
        open_files(process),
        // Mappings of files. The allocator's own mappings do not matter.
        maps.lines().filter(|line| line.contains("memfd:")).count(),
        threads(process),
    ]
}

/// Waits until the daemon has open what it had `before`: it takes a moment to notice that a front end has gone.
pub fn settles(daemon: &Daemon, before: [usize; 3]) {
    eventually("the daemon to close everything", || {
        (open_in(daemon) == before).then_some(())
    });
}

/// What the daemon has open while it serves no front end. Its sockets accept connections before its threads run; the
/// last thread is the one that serves front ends.
pub fn idle(daemon: &Daemon) -> [usize; 3] {
    let tasks = format!("/proc/{}/task", daemon.process.id());
    eventually("the daemon's threads", || {
        let named = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        let mut names = std::fs::read_dir(&tasks).ok()?.flatten().map(named);
        names
            .any(|name| name.is_ok_and(|name| name.trim() == "front-ends"))
            .then_some(())
    });
    let before = eventually("a daemon with nothing to do", || {
        let first = open_in(daemon);
        std::thread::sleep(std::time::Duration::from_millis(20));
        (open_in(daemon) == first).then_some(first)
    });
    assert_eq!(before[1], 0, "no front end's memory is mapped");
    before
}
