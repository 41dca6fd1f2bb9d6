// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A person's end of the control socket.

use std::fs::File;
use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Instant;

use spec::PageRange;
use spec::control::{HEADER_BYTES, Header, HintState, PageSet, Refusal, Reply, Request};
use spec::page_map::PageMap;
use spec_testing::bits;
use spec_testing::control::frame;
use vhost_device_balloon::sockets;

use super::PATIENCE;
use super::migrator::Migrator;

/// A connection that has sent its hello and does not become the migrator.
pub struct Person(Migrator);

impl Person {
    pub fn connect(control: &Path) -> Self {
        let mut connection = Migrator::connect_only(control);
        connection.hello();
        Self(connection)
    }

    pub fn refused(&mut self, request: Request) -> Refusal {
        match self.ask(request) {
            Reply::Refused(refusal) => refusal,
            other => panic!("{request:?} was not refused: {other:?}"),
        }
    }

    pub fn hints(&mut self, request: Request) -> HintState {
        match self.ask(request) {
            Reply::HintState(state) => state,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    /// The pages of `set`, as runs of first page and count, and the regions of the map.
    pub fn page_map(&mut self, set: PageSet) -> (Vec<(u64, u64)>, Vec<PageRange>) {
        self.send_raw(&frame(Request::PageMap(set), 7));
        let (mut header, mut fds) = ([0; HEADER_BYTES], Vec::new());
        let deadline = Some(Instant::now() + PATIENCE);
        assert!(sockets::receive(&self.stream, &mut header, &mut fds, deadline).unwrap());
        let header = Header::from_bytes(&header).unwrap();
        let mut payload = vec![0; header.length as usize];
        assert!(sockets::receive(&self.stream, &mut payload, &mut fds, deadline).unwrap());
        let reply = Reply::decode(&header, &payload).unwrap();
        let Reply::PageMap { bytes } = reply else {
            panic!("no map: {reply:?}");
        };
        assert_eq!(fds.len(), 1);
        let mut content = Vec::new();
        File::from(fds.remove(0)).read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, bytes);
        let map = PageMap::parse(&content).unwrap();
        // A bit for each page of memory, wherever it lies, and the table of regions.
        let count: u64 = map.regions().map(|region| region.count()).sum();
        assert!(bytes <= count / 8 + 4096, "{bytes} bytes for {count} pages");
        let is_set = |page: &u64| map.word((page / 64) as usize) >> (page % 64) & 1 == 1;
        let pages = map
            .regions()
            .flat_map(|region| region.first()..region.end());
        (bits::runs(pages.filter(is_set)), map.regions().collect())
    }
}

impl Deref for Person {
    type Target = Migrator;

    fn deref(&self) -> &Migrator {
        &self.0
    }
}

impl DerefMut for Person {
    fn deref_mut(&mut self) -> &mut Migrator {
        &mut self.0
    }
}
