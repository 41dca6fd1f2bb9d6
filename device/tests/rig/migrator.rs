// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migrator's end of the control socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use spec::balloon::CommandId;
use spec::control::{
    DeviceStatus, EpochReport, HEADER_BYTES, Header, MAX_PAYLOAD, Refusal, Reply, Request, VERSION,
};
use spec::hint_map::{self, HintMap, bytes_for};
use vhost_device_balloon::memory::shared_map::{self, SharedMap};
use vhost_device_balloon::sockets;

use super::guest::PAGES;
use super::{PATIENCE, eventually};

pub struct Migrator {
    pub stream: UnixStream,
    /// The device's map, as mapped here.
    pub map: HintMap<SharedMap>,
    sequence: u32,
}

impl Migrator {
    /// Connects, greets and hands a map for the whole guest over.
    pub fn connect(control: &Path) -> Self {
        let mut migrator = Self::connect_only(control);
        let hello = migrator.ask(Request::Hello { version: VERSION });
        assert!(matches!(
            hello,
            Reply::Hello {
                version: VERSION,
                ..
            }
        ));
        let (file, bytes, map) = map_file(PAGES);
        assert_eq!(
            migrator.ask_with(Request::SetHintMap { bytes }, &[file]),
            Reply::Ok
        );
        migrator.map = map;
        migrator
    }

    /// Connects and says nothing.
    pub fn connect_only(control: &Path) -> Self {
        let stream = eventually("the control socket", || UnixStream::connect(control).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, _, map) = map_file(64);
        Self {
            stream,
            map,
            sequence: 0,
        }
    }

    pub fn ask(&mut self, request: Request) -> Reply {
        self.ask_with(request, &[])
    }

    pub fn ask_with(&mut self, request: Request, fds: &[OwnedFd]) -> Reply {
        self.sequence += 1;
        let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
        let length = request.encode(self.sequence, &mut frame);
        sockets::send(&self.stream, &frame[..length], fds).unwrap();
        let (sequence, reply) = self.reply();
        assert_eq!(sequence, self.sequence);
        reply
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn reply(&mut self) -> (u32, Reply) {
        self.next_reply().expect("the device has not hung up")
    }

    /// As [`Migrator::reply`]; `None` if the device has hung up.
    pub fn next_reply(&mut self) -> Option<(u32, Reply)> {
        let mut header = [0; HEADER_BYTES];
        if self.stream.read(&mut header[..1]).unwrap() == 0 {
            return None;
        }
        self.stream.read_exact(&mut header[1..]).unwrap();
        let header = Header::from_bytes(&header).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Some((header.sequence, Reply::decode(&header, &payload).unwrap()))
    }

    /// Whether the device has hung up, with nothing left to read.
    pub fn is_hung_up_on(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    pub fn open(&mut self, epoch: u64) -> CommandId {
        match self.ask(Request::Open { epoch }) {
            Reply::Opened { command_id } => command_id,
            other => panic!("epoch {epoch} is not open: {other:?}"),
        }
    }

    pub fn open_refused(&mut self, epoch: u64) -> Refusal {
        match self.ask(Request::Open { epoch }) {
            Reply::Refused(refusal) => refusal,
            other => panic!("epoch {epoch} was not refused: {other:?}"),
        }
    }

    pub fn close(&mut self, epoch: u64) -> EpochReport {
        match self.ask(Request::Close { epoch }) {
            Reply::Closed(report) => report,
            other => panic!("epoch {epoch} is not closed: {other:?}"),
        }
    }

    pub fn done(&mut self) {
        assert_eq!(self.ask(Request::Done), Reply::Ok);
    }

    pub fn status(&mut self) -> DeviceStatus {
        match self.ask(Request::Status) {
            Reply::Status(status) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// The pages whose bits are set, as runs of first page and count.
    pub fn hinted(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for page in 0..PAGES {
            if self.map.load((page / 64) as usize).pages() & (1 << (page % 64)) == 0 {
                continue;
            }
            match runs.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ => runs.push((page, 1)),
            }
        }
        runs
    }
}

/// A memory file of `bytes` zero bytes, sealed against shrinking.
pub fn memfd(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("test", flags).unwrap();
    ftruncate(&file, bytes).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}

/// A hint map for `pages` pages: its file, the file's size, and the map.
pub fn map_file(pages: u64) -> (OwnedFd, u64, HintMap<SharedMap>) {
    let bytes = bytes_for(pages).unwrap();
    let file = File::from(memfd(bytes));
    for (word, value) in [hint_map::MAGIC, hint_map::VERSION, pages]
        .iter()
        .enumerate()
    {
        file.write_all_at(&value.to_le_bytes(), word as u64 * 8)
            .unwrap();
    }
    let map = shared_map::open(file.try_clone().unwrap().into(), bytes).unwrap();
    (file.into(), bytes, map)
}
