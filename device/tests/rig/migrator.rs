// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migrator's end of the control socket.

use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::path::Path;

use spec::control::{DeviceStatus, Reply, Request};
use spec::hint_map::HintMap;
use spec_testing::bits;
use spec_testing::control::Client;
use spec_testing::memory_file::hint_map;
use vhost_device_balloon::memory::shared_map::{self, SharedMap};

use super::guest::PAGES;

pub use spec_testing::memory_file::sealed as memfd;

/// A client that has a hint map.
pub struct Migrator {
    client: Client,
    /// The device's map, mapped here.
    pub map: HintMap<SharedMap>,
}

impl Migrator {
    /// Connects, greets, and hands over a map for the whole guest.
    pub fn connect(control: &Path) -> Self {
        let mut migrator = Self::connect_only(control);
        migrator.hello();
        let (file, bytes, map) = map_file(PAGES);
        migrator.give_map(file, bytes);
        migrator.map = map;
        migrator
    }

    /// Connects and sends nothing.
    pub fn connect_only(control: &Path) -> Self {
        let (_, _, map) = map_file(64);
        Self {
            client: Client::connect(control),
            map,
        }
    }

    /// Hangs up and returns the map.
    pub fn hang_up(self) -> HintMap<SharedMap> {
        self.map
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
        let word = |page: u64| self.map.load((page / 64) as usize).pages();
        bits::runs((0..PAGES).filter(|page| word(*page) >> (page % 64) & 1 == 1))
    }
}

impl Deref for Migrator {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Migrator {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// A hint map for `pages` pages: its file, the file's size, and the map.
pub fn map_file(pages: u64) -> (OwnedFd, u64, HintMap<SharedMap>) {
    let (file, bytes) = hint_map(pages);
    let map = shared_map::open(file.try_clone().unwrap(), bytes).unwrap();
    (file, bytes, map)
}
