// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest whose driver inflates and deflates the balloon, and a person who asks the device about it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use spec::control::{BalloonStatus, Reply, Request, Statistics};
use spec_testing::bits;
use vhost::vhost_user::Frontend;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::guest::{Daemon, Guest, HIGH, LOG_ALL, LOW, MIB, guest_memory};
use super::migrator::memfd;
use super::person::Person;
use super::queue::{Buffer, Queue};

/// Where page numbers lie: after the queues.
pub const NUMBERS: u64 = 2 * MIB;
/// Where pages for the balloon lie: after the numbers, in the first region.
pub const FREE: u64 = 8 * MIB;

pub struct Ballooning {
    pub guest: Guest,
    pub inflate: Queue,
    pub deflate: Queue,
    pub person: Person,
    pub daemon: Daemon,
    features: u64,
}

impl Ballooning {
    /// A guest with the usual memory and `features`, of a daemon with `flags`.
    pub fn boot(flags: &[&str], features: u64) -> Self {
        Self::boot_with(flags, features, guest_memory(&[LOW, HIGH]))
    }

    /// As [`Ballooning::boot`], with memory that the test provides.
    pub fn boot_with(flags: &[&str], features: u64, memory: GuestMemoryMmap) -> Self {
        let daemon = Daemon::start(flags);
        let stream = daemon.connect();
        Self::boot_over(daemon, stream, features, memory)
    }

    /// As [`Ballooning::boot_with`], over a connection to a running daemon.
    pub fn boot_over(
        daemon: Daemon,
        stream: UnixStream,
        features: u64,
        memory: GuestMemoryMmap,
    ) -> Self {
        let mut guest = Guest::with_memory(stream, features, 3, memory);
        let (inflate, deflate) = (guest.queue(0), guest.queue(1));
        inflate.start(&mut guest.front_end, 0);
        deflate.start(&mut guest.front_end, 0);
        let person = Person::connect(&daemon.control());
        Self {
            guest,
            inflate,
            deflate,
            person,
            daemon,
            features,
        }
    }

    /// Puts the array of `pages` into guest memory.
    pub fn numbers(&self, pages: &[u32]) -> Buffer {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.guest
            .memory
            .write_slice(&bytes, GuestAddress(NUMBERS))
            .unwrap();
        Buffer::Out(NUMBERS, bytes.len() as u32)
    }

    pub fn inflate(&mut self, pages: &[u32]) {
        let numbers = self.numbers(pages);
        self.inflate.send(&[numbers]);
    }

    pub fn deflate(&mut self, pages: &[u32]) {
        let numbers = self.numbers(pages);
        self.deflate.send(&[numbers]);
    }

    pub fn status(&mut self) -> BalloonStatus {
        match self.person.ask(Request::BalloonStatus) {
            Reply::BalloonStatus(status) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// The guest's statistics as a person sees them, if the device has any.
    pub fn statistics(&mut self) -> Option<Statistics> {
        match self.person.ask(Request::Statistics) {
            Reply::Statistics(statistics) => Some(statistics),
            _ => None,
        }
    }

    /// Starts dirty logging of `pages` pages from address 0.
    pub fn log(&mut self, pages: u64) -> DirtyLog {
        DirtyLog::start(&mut self.guest.front_end, self.features, pages)
    }
}

/// The front end's end of the dirty log.
pub struct DirtyLog {
    file: File,
    bytes: u64,
}

impl DirtyLog {
    /// Has a device with `features` log the first `pages` pages.
    pub fn start(front_end: &mut Frontend, features: u64, pages: u64) -> Self {
        let bytes = pages.div_ceil(8);
        let file = File::from(memfd(bytes));
        let region = VhostUserDirtyLogRegion {
            mmap_size: bytes,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        front_end.set_features(features | LOG_ALL).unwrap();
        front_end.set_log_base(0, Some(region)).unwrap();
        Self { file, bytes }
    }

    /// The pages that are dirty.
    pub fn pages(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.bytes as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bits::set_in(&bytes)
    }
}

/// The number of the page at `address`.
pub fn pfn(address: u64) -> u32 {
    u32::try_from(address / 4096).unwrap()
}
