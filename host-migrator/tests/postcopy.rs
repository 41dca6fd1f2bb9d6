// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source in postcopy, and a destination that breaks off, lies or floods: it is refused by name, nothing is lost, and the guest never
//! runs at the source again.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use host_migrator::{
    Address, Connection, Migration, MigrationError, MigrationHandle, MigrationParams,
    MigrationState, Owner, PAGE_SIZE, PageRange, PostcopyStart,
};
use software_guest::Guest;
use software_guest::memory::Memory;
use spec::stream::{
    ChannelHeader, GREETING_BYTES, Greeting, Nonce, PagesPrefix, SECTION_HEADER_BYTES,
    STREAM_HEADER_BYTES, SectionHeader, SectionKind, StreamHeader, run_to_bytes, runs,
};
use spec_testing::eventually;

const TIME: Duration = Duration::from_secs(30);
const PAGE: usize = PAGE_SIZE as usize;

fn page(pfn: u64) -> PageRange {
    PageRange::new(pfn, 1).unwrap()
}

/// One connection of a destination that is made by hand.
struct End {
    stream: TcpStream,
    sequence: u32,
}

impl End {
    fn accept(listener: &TcpListener) -> Self {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(TIME)).unwrap();
        let greeting: [u8; GREETING_BYTES] = Greeting { session: 7 }.to_bytes();
        stream.write_all(&greeting).unwrap();
        let sequence = 0;
        Self { stream, sequence }
    }

    fn header<const N: usize>(&mut self) -> [u8; N] {
        let mut header = [0; N];
        self.stream.read_exact(&mut header).unwrap();
        header
    }

    fn say(&mut self, kind: SectionKind, payload: &[u8]) {
        let header = SectionHeader {
            kind,
            sequence: self.sequence,
            round: 1,
            length: payload.len() as u64,
            payload_crc: crc32fast::hash(payload),
        };
        self.sequence += 1;
        // The source may have ended the connection.
        let _ = self.stream.write_all(&header.to_bytes());
        let _ = self.stream.write_all(payload);
    }

    fn next(&mut self) -> (SectionKind, Vec<u8>) {
        let header = SectionHeader::from_bytes(&self.header::<SECTION_HEADER_BYTES>()).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).unwrap();
        (header.kind, payload)
    }

    /// The next section that is no heartbeat.
    fn hear(&mut self) -> (SectionKind, Vec<u8>) {
        loop {
            let (kind, payload) = self.next();
            if kind != SectionKind::Heartbeat {
                return (kind, payload);
            }
        }
    }

    fn request(&mut self, range: PageRange) {
        self.say(SectionKind::Request, &run_to_bytes(range));
    }

    /// Pages that come until `page` does.
    fn until(&mut self, page: u64, pages: &mut BTreeMap<u64, Vec<u8>>) {
        while !pages.contains_key(&page) {
            let (kind, payload) = self.hear();
            assert_eq!(kind, SectionKind::Pages);
            let prefix: [u8; PagesPrefix::BYTES] =
                payload[..PagesPrefix::BYTES].try_into().unwrap();
            let prefix = PagesPrefix::from_bytes(&prefix, payload.len() as u64).unwrap();
            let table = &payload[PagesPrefix::BYTES..][..prefix.runs as usize * 16];
            let mut content = payload[PagesPrefix::BYTES + table.len()..].chunks(PAGE);
            for run in runs(kind, table) {
                for pfn in run.unwrap().first()..run.unwrap().end() {
                    let before = pages.insert(pfn, content.next().unwrap().to_vec());
                    assert!(before.is_none(), "page {pfn} came twice");
                }
            }
        }
    }
}

/// A destination that is made by hand, and has taken the guest over.
struct ByHand {
    listener: TcpListener,
    nonce: Nonce,
    lanes: Vec<End>,
    promised: Vec<PageRange>,
    migration: MigrationHandle,
    _control: End,
}

impl ByHand {
    /// Takes `guest` over at once, and nothing of its memory. What nobody asks for comes late.
    fn takes(guest: &Guest) -> Self {
        Self::takes_at(guest, Some(1))
    }

    /// As [`ByHand::takes`]; so many bytes a second come that nobody asks for.
    fn takes_at(guest: &Guest, bandwidth: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut params = MigrationParams::default().with_postcopy(PostcopyStart::AtOnce);
        params.max_postcopy_bandwidth = bandwidth;
        let connection = Connection::connect(&address(&listener), TIME).unwrap();
        let migration = Migration::start(guest.source(), params, connection).unwrap();
        let mut control = End::accept(&listener);
        let header = StreamHeader::from_bytes(&control.header::<STREAM_HEADER_BYTES>()).unwrap();
        assert_eq!(
            (control.hear().0, control.hear().0),
            (SectionKind::Layout, SectionKind::Description)
        );
        let nonce = Nonce::new([9; Nonce::BYTES]);
        control.say(SectionKind::Accept, &nonce.to_bytes());
        let lanes = join(&listener, header.lanes, nonce);
        control.say(SectionKind::Joined, &[]);
        let mut promised = Vec::new();
        loop {
            let (kind, payload) = control.hear();
            match kind {
                SectionKind::RoundEnd => control.say(SectionKind::RoundReceived, &[]),
                SectionKind::Promised => {
                    promised.extend(runs(kind, &payload).map(Result::unwrap));
                }
                SectionKind::Commit => control.say(SectionKind::Ready, &[]),
                SectionKind::HandOver => break control.say(SectionKind::Running, &[]),
                _ => {}
            }
        }
        Self {
            listener,
            nonce,
            lanes,
            promised,
            migration,
            _control: control,
        }
    }

    fn state(&self) -> MigrationState {
        self.migration.status().status
    }

    fn until_paused(&self) -> String {
        eventually("a break", || {
            (self.state() == MigrationState::PostcopyPaused).then_some(())
        });
        self.migration.status().error_desc.unwrap()
    }

    /// The lanes join again, and `missing` is said to be missing.
    fn recovers(&mut self, missing: &[PageRange]) {
        let connection = Connection::connect(&address(&self.listener), TIME).unwrap();
        assert!(self.migration.monitor().recover(connection));
        self.lanes = join(&self.listener, self.lanes.len() as u32, self.nonce);
        let table: Vec<u8> = missing.iter().copied().flat_map(run_to_bytes).collect();
        self.lanes[0].say(SectionKind::Missing, &table);
        self.lanes[0].say(SectionKind::Missing, &[]);
    }

    fn ends(mut self, guest: &Guest) {
        self.lanes[0].say(SectionKind::Complete, &[]);
        let (_, result) = self.migration.join();
        let report = result.unwrap();
        assert!(report.postcopy.is_some());
        assert!(guest.machine.is_handed_over());
        assert_eq!(guest.ownership.get().owner, Owner::There);
    }
}

fn address(listener: &TcpListener) -> Address {
    let address = listener.local_addr().unwrap();
    format!("tcp:{address}").parse().unwrap()
}

fn join(listener: &TcpListener, count: u32, nonce: Nonce) -> Vec<End> {
    let mut lanes = BTreeMap::new();
    for _ in 0..count {
        let mut lane = End::accept(listener);
        let header = ChannelHeader::from_bytes(&lane.header::<STREAM_HEADER_BYTES>()).unwrap();
        assert_eq!(header.nonce, nonce);
        lanes.insert(header.channel, lane);
    }
    lanes.into_values().collect()
}

/// A guest with so many pages that the last ones do not come unless they are asked for.
fn guest() -> Guest {
    Guest::with_all_written(Memory::new(2000, 0))
}

/// The last two promised pages.
fn last_two(promised: &[PageRange]) -> (u64, u64) {
    let end = promised.last().unwrap().end();
    (end - 2, end - 1)
}

fn content(guest: &Guest, pfn: u64) -> Vec<u8> {
    let mut content = vec![0; PAGE];
    guest.memory.ram.read(page(pfn), &mut content).unwrap();
    content
}

#[test]
fn a_page_that_is_asked_for_comes_at_once_and_a_flood_of_requests_brings_it_once() {
    let guest = guest();
    let mut destination = ByHand::takes(&guest);
    let (first, last) = last_two(&destination.promised);
    let mut pages = BTreeMap::new();
    for _ in 0..10_000 {
        destination.lanes[0].request(page(last));
    }
    destination.lanes[0].request(page(first));
    destination.lanes[0].until(last, &mut pages);
    destination.lanes[0].until(first, &mut pages);
    for pfn in [first, last] {
        assert!(pages[&pfn] == content(&guest, pfn), "page {pfn}");
    }
    destination.ends(&guest);
}

#[test]
fn a_request_for_a_page_that_was_not_promised_is_refused_by_name_and_loses_nothing() {
    for wrong in [
        page(3000),
        page(1 << 40),
        PageRange::new(1999, 1 << 50).unwrap(),
    ] {
        let guest = &guest();
        let mut destination = ByHand::takes(guest);
        destination.lanes[0].request(wrong);
        let why = destination.until_paused();
        assert!(why.contains("was not promised"), "{why}");
        let (kind, told) = destination.lanes[0].hear();
        assert_eq!(kind, SectionKind::Abort);
        assert!(
            String::from_utf8(told)
                .unwrap()
                .contains("was not promised")
        );
        assert!(guest.machine.is_handed_over() && !destination.migration.cancel());
        // The same destination, or a better one with its secret, may go on.
        let (_, last) = last_two(&destination.promised);
        let promised = destination.promised.clone();
        destination.recovers(&promised);
        let mut pages = BTreeMap::new();
        destination.lanes[0].request(page(last));
        destination.lanes[0].until(last, &mut pages);
        assert!(pages[&last] == content(guest, last));
        destination.ends(guest);
    }
}

#[test]
fn what_was_lost_in_a_buffer_comes_again_and_a_list_that_lies_is_refused() {
    let guest = guest();
    let mut destination = ByHand::takes(&guest);
    let (_, last) = last_two(&destination.promised);
    let mut pages = BTreeMap::new();
    destination.lanes[0].request(page(last));
    destination.lanes[0].until(last, &mut pages);
    // It had arrived in a buffer, and nobody has read it.
    destination.lanes.clear_connections();
    destination.until_paused();
    for lie in [&[page(1 << 40)][..], &[page(last), page(last)]] {
        destination.recovers(lie);
        eventually("a refusal", || {
            let status = destination.migration.status();
            let why = status.error_desc.unwrap_or_default();
            let is_paused = status.status == MigrationState::PostcopyPaused;
            (is_paused && why.contains("can be tried again")).then_some(())
        });
    }
    let promised = destination.promised.clone();
    destination.recovers(&promised);
    let mut again = BTreeMap::new();
    destination.lanes[0].request(page(last));
    destination.lanes[0].until(last, &mut again);
    assert!(again[&last] == content(&guest, last));
    destination.ends(&guest);
}

#[test]
fn few_sections_that_nobody_asked_for_are_on_their_way_until_one_was_placed() {
    let guest = guest();
    let mut destination = ByHand::takes_at(&guest, None);
    let lane = &mut destination.lanes[1];
    for _ in 0..2 {
        assert_eq!(lane.hear().0, SectionKind::Pages);
    }
    // Nothing more comes, and the source says that it is alive.
    assert_eq!(lane.next().0, SectionKind::Heartbeat);
    lane.say(SectionKind::Placed, &[]);
    assert_eq!(lane.hear().0, SectionKind::Pages);
    destination.ends(&guest);
}

#[test]
fn a_destination_that_has_placed_more_than_came_is_refused() {
    let guest = guest();
    let mut destination = ByHand::takes_at(&guest, None);
    // The guest has fewer sections.
    for _ in 0..100 {
        destination.lanes[1].say(SectionKind::Placed, &[]);
    }
    let why = destination.until_paused();
    assert!(why.contains("a Placed section arrived where"), "{why}");
    let promised = destination.promised.clone();
    destination.recovers(&promised);
    destination.ends(&guest);
}

#[test]
fn a_source_that_gives_its_memory_up_never_runs_the_guest() {
    let guest = guest();
    let mut destination = ByHand::takes(&guest);
    destination.lanes.clear_connections();
    destination.until_paused();
    assert!(destination.migration.monitor().give_memory_up());
    let (_, result) = destination.migration.join();
    assert!(
        matches!(result, Err(MigrationError::MemoryGivenUp(_))),
        "{result:?}"
    );
    assert!(guest.machine.is_handed_over());
    assert_eq!(guest.ownership.get().owner, Owner::There);
}

trait Lanes {
    fn clear_connections(&mut self);
}

impl Lanes for Vec<End> {
    /// Ends the connections. The ends stay, so that there are as many again.
    fn clear_connections(&mut self) {
        for lane in self {
            lane.stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
}
