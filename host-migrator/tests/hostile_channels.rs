// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Channels that join without the secret, twice, or late, and channels that carry what they must not: each is refused and named,
//! and the migration under way is not harmed by a stranger.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use host_migrator::GuestRam;
use software_guest::machine::DESCRIPTION;
use software_guest::memory::Memory;
use software_guest::waiting::Waiting;
use software_guest::{Guest, rounds};
use spec::PageRange;
use spec::stream::{
    ChannelHeader, CompressedPrefix, CompressionMethod, GREETING_BYTES, Greeting, Nonce,
    SECTION_HEADER_BYTES, SectionHeader, SectionKind, StreamHeader, run_to_bytes,
};

fn guest() -> Guest {
    Guest::with_all_written(Memory::new(2000, 0))
}

/// Callers at a destination that waits.
trait Callers {
    /// Connects, and receives the greeting.
    fn caller(&self) -> Caller;
    /// A source with `channels` channels that has been accepted, and the secret for them.
    fn accepted_source(&self, channels: u32) -> (Caller, Nonce);
    /// A channel that says that it is number `channel` of the session of `nonce`.
    fn channel(&self, channel: u32, nonce: Nonce) -> Caller;
}

impl Callers for Waiting {
    fn caller(&self) -> Caller {
        let mut stream = self.stranger();
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting).unwrap();
        Caller {
            stream,
            session: Greeting::from_bytes(&greeting).unwrap().session,
            sequence: 0,
        }
    }

    fn accepted_source(&self, channels: u32) -> (Caller, Nonce) {
        let mut source = self.caller();
        source.introduce(&self.ram, channels);
        let nonce = Nonce::from_bytes(&source.answer(SectionKind::Accept)).unwrap();
        (source, nonce)
    }

    fn channel(&self, channel: u32, nonce: Nonce) -> Caller {
        let mut caller = self.caller();
        caller.join(channel, nonce);
        caller
    }
}

/// A true source connects, and its guest arrives over two channels.
fn receives(destination: Waiting, guest: &Guest) {
    let params = rounds(2).with_multifd_channels(2);
    assert_eq!(destination.receives(guest, params).channels, 2);
}

/// Somebody who has connected.
struct Caller {
    stream: TcpStream,
    session: u64,
    sequence: u32,
}

impl Caller {
    fn introduce(&mut self, ram: &GuestRam, channels: u32) {
        let header = StreamHeader {
            session: self.session,
            number: 0,
            ram_bytes: ram.pages() * 4096,
            regions: ram.regions().len() as u32,
            channels,
            local: false,
            lanes: 0,
        };
        self.stream.write_all(&header.to_bytes()).unwrap();
        self.section(SectionKind::Layout, 1, &ram.layout().to_bytes());
        self.section(SectionKind::Description, 1, DESCRIPTION);
    }

    fn join(&mut self, channel: u32, nonce: Nonce) {
        let header = ChannelHeader {
            session: self.session,
            nonce,
            channel,
        };
        self.stream.write_all(&header.to_bytes()).unwrap();
    }

    fn section(&mut self, kind: SectionKind, round: u32, payload: &[u8]) {
        let header = SectionHeader {
            kind,
            sequence: self.sequence,
            round,
            length: payload.len() as u64,
            payload_crc: crc32fast::hash(payload),
        };
        self.sequence += 1;
        // The destination may have closed the connection.
        let _ = self.stream.write_all(&header.to_bytes());
        let _ = self.stream.write_all(payload);
    }

    /// The payload of the next section, which is of `kind`. Heartbeats are skipped.
    fn answer(&mut self, kind: SectionKind) -> Vec<u8> {
        loop {
            let mut header = [0; SECTION_HEADER_BYTES];
            self.stream.read_exact(&mut header).unwrap();
            let header = SectionHeader::from_bytes(&header).unwrap();
            let mut payload = vec![0; header.length as usize];
            self.stream.read_exact(&mut payload).unwrap();
            if header.kind != SectionKind::Heartbeat {
                let text = String::from_utf8_lossy(&payload);
                assert_eq!(header.kind, kind, "{text}");
                return payload;
            }
        }
    }

    /// Why it is refused.
    fn refusal(mut self) -> String {
        String::from_utf8(self.answer(SectionKind::Abort)).unwrap()
    }
}

/// Of two callers, the one that waits on and the one that got an answer: either may have been heard first.
fn first_answered([one, other]: [Caller; 2]) -> (Caller, Caller) {
    let is_answered = |caller: &Caller| {
        caller.stream.set_nonblocking(true).unwrap();
        let peeked = caller.stream.peek(&mut [0]);
        caller.stream.set_nonblocking(false).unwrap();
        peeked.is_ok()
    };
    loop {
        if is_answered(&one) {
            return (other, one);
        }
        if is_answered(&other) {
            return (one, other);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn assert_refused(caller: Caller, why: &str) {
    let refusal = caller.refusal();
    assert!(refusal.contains(why), "{refusal}");
}

#[test]
fn a_channel_joins_only_with_the_secret_of_the_session() {
    let guest = guest();
    let destination = Waiting::for_a_guest_like(&guest);
    let guessed = Nonce::new([0; Nonce::BYTES]);
    assert_refused(
        destination.channel(0, guessed),
        "no migration waits for a channel",
    );
    let (source, nonce) = destination.accepted_source(2);
    assert_refused(destination.channel(0, guessed), "session's secret");
    assert_refused(
        destination.channel(7, nonce),
        "channel 7 is none of the 2 channels",
    );
    let twins = [(); 2].map(|()| destination.channel(1, nonce));
    let (joined, refused) = first_answered(twins);
    assert_refused(refused, "channel 1 has joined before");
    let mut other = destination.caller();
    other.introduce(&destination.ram, 0);
    assert_refused(other, "another guest is being received");
    // The source gives up, so the destination waits for another one: the old secret is worth nothing.
    drop((source, joined));
    let (source, _) = destination.accepted_source(1);
    assert_refused(destination.channel(0, nonce), "session's secret");
    drop(source);
    receives(destination, &guest);
}

#[test]
fn a_replayed_channel_header_is_refused() {
    let guest = guest();
    let destination = Waiting::for_a_guest_like(&guest);
    let (source, nonce) = destination.accepted_source(1);
    let mut replay = destination.caller();
    replay.session ^= 1;
    replay.join(0, nonce);
    assert_refused(replay, "another session");
    drop(source);
    receives(destination, &guest);
}

#[test]
fn more_channels_than_there_may_be_are_refused() {
    let guest = guest();
    let destination = Waiting::for_a_guest_like(&guest);
    let mut greedy = destination.caller();
    greedy.introduce(&destination.ram, 129);
    assert_refused(greedy, "invalid value in header field channels");
    receives(destination, &guest);
}

#[test]
fn many_strangers_while_channels_join_and_carry_pages_harm_nothing() {
    let guest = guest();
    let destination = Waiting::for_a_guest_like(&guest);
    let crowd: Vec<_> = (0..100)
        .map(|_| {
            let mut stranger = destination.caller();
            stranger.session ^= 5;
            stranger.join(0, Nonce::new([1; Nonce::BYTES]));
            stranger
        })
        .collect();
    receives(destination, &guest);
    drop(crowd);
}

/// The destination's error after a channel has sent these sections.
fn after(sections: &[(SectionKind, u32, &[u8])]) -> String {
    let guest = guest();
    let destination = Waiting::for_a_guest_like(&guest);
    let (mut source, nonce) = destination.accepted_source(1);
    let mut channel = destination.channel(0, nonce);
    source.answer(SectionKind::Joined);
    for (kind, round, payload) in sections {
        channel.section(*kind, *round, payload);
    }
    let refusal = source.refusal();
    let error = destination.thread.join().unwrap().unwrap_err().to_string();
    assert_eq!(refusal, error);
    error
}

#[test]
fn what_a_channel_must_not_carry_is_named() {
    let run = run_to_bytes(PageRange::new(0, 1).unwrap());
    for kind in [SectionKind::Zero, SectionKind::Discard] {
        let error = after(&[(kind, 1, &run)]);
        let expected = format!("channel 0: source: a {kind:?} section arrived where");
        assert!(error.contains(&expected), "{error}");
    }
    for kind in [SectionKind::Commit, SectionKind::HandOver] {
        let error = after(&[(kind, 1, &[])]);
        assert!(error.starts_with("channel 0: "), "{error}");
    }
    let error = after(&[(SectionKind::Drain, 2, &[])]);
    assert!(
        error.contains("a section of round 2 arrived in round 1"),
        "{error}"
    );
    let bomb = CompressedPrefix {
        method: CompressionMethod::Lz4,
        runs: 1,
        pages: 1,
        content_crc: 0,
    };
    let packed = lz4_flex::block::compress(&vec![0; 1 << 20]);
    let bomb = [&bomb.to_bytes()[..], &run, &packed[..4000]].concat();
    let error = after(&[(SectionKind::CompressedPages, 1, &bomb)]);
    let refusal = "channel 0: the pages of a section cannot be decompressed";
    assert!(error.starts_with(refusal), "{error}");
    let error = after(&[(SectionKind::Pages, 1, &[1; 30])]);
    assert!(
        error.contains("payload of a Pages section is invalid"),
        "{error}"
    );
}
