// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams that no honest source sends: the destination says what is wrong and does not run the guest.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use host_migrator::wire::SectionError;
use host_migrator::{GuestRam, MigrationParams, OwnershipRecord, ReceiveError, receive};
use software_guest::machine::{DESCRIPTION, STATE, SoftDestination};
use software_guest::memory::{Memory, like};
use software_guest::proxy::{Fault, Wire};
use software_guest::{Guest, migrate_over};
use spec::PageRange;
use spec::stream::{
    GREETING_BYTES, Greeting, MAX_STATE_SECTIONS, PagesPrefix, SectionHeader, SectionKind,
    StatePrefix, StreamError, StreamHeader, Totals, run_to_bytes,
};

fn memory() -> Memory {
    Memory::new(64, 8)
}

/// A source that sends whatever the test orders.
struct Liar {
    stream: UnixStream,
    sequence: u32,
    round: u32,
    session: u64,
    sent: Vec<u8>,
}

impl Liar {
    fn bytes(&mut self, bytes: &[u8]) {
        self.sent.extend(bytes);
        // The destination may have closed the connection.
        let _ = self.stream.write_all(bytes);
    }

    fn header(&mut self, ram: &GuestRam) {
        let header = StreamHeader {
            session: self.session,
            number: 0,
            ram_bytes: ram.pages() * 4096,
            regions: ram.regions().len() as u32,
            channels: 0,
            local: false,
            lanes: 0,
        };
        self.bytes(&header.to_bytes());
    }

    fn section(&mut self, kind: SectionKind, payload: &[u8]) {
        self.summed_section(kind, payload, crc32fast::hash(payload));
    }

    fn summed_section(&mut self, kind: SectionKind, payload: &[u8], payload_crc: u32) {
        let header = SectionHeader {
            kind,
            sequence: self.sequence,
            round: self.round,
            length: payload.len() as u64,
            payload_crc,
        };
        self.sequence += 1;
        self.bytes(&header.to_bytes());
        self.bytes(payload);
    }

    fn start(&mut self, ram: &GuestRam) {
        self.header(ram);
        self.section(SectionKind::Layout, &ram.layout().to_bytes());
        self.section(SectionKind::Description, DESCRIPTION);
    }

    fn finish(&mut self, totals: Totals) {
        self.section(SectionKind::RoundEnd, &[]);
        self.round += 1;
        self.section(SectionKind::MachineState, &part("vcpus", STATE));
        let bytes = self.sent.len() as u64;
        let totals = Totals {
            rounds: 1,
            bytes,
            ..totals
        };
        self.section(SectionKind::Commit, &totals.to_bytes());
        self.section(SectionKind::HandOver, &[]);
    }
}

/// The payload of a section of the machine's state.
fn part(name: &str, bytes: &[u8]) -> Vec<u8> {
    let prefix = StatePrefix {
        version: 1,
        name_bytes: name.len() as u32,
    };
    [&prefix.to_bytes(), name.as_bytes(), bytes].concat()
}

/// The destination's result after `lies`.
fn received(lies: impl FnOnce(&mut Liar, &GuestRam)) -> Result<(), ReceiveError> {
    received_into(&Arc::new(like(&memory().ram)), lies)
}

/// As [`received`], with memory that the test provides.
fn received_into(
    ram: &Arc<GuestRam>,
    lies: impl FnOnce(&mut Liar, &GuestRam),
) -> Result<(), ReceiveError> {
    let (here, there) = UnixStream::pair().unwrap();
    let theirs = Arc::clone(ram);
    let destination = thread::spawn(move || {
        let mut machine = SoftDestination::default();
        let result = receive(
            there.try_into().unwrap(),
            &theirs,
            &mut machine,
            &OwnershipRecord::there(),
            &mut |_| (),
        );
        assert_eq!(machine.runs, result.is_ok());
        result.map(|_| ())
    });
    let mut liar = Liar {
        stream: here,
        sequence: 0,
        round: 1,
        session: 0,
        sent: Vec::new(),
    };
    let mut greeting = [0; GREETING_BYTES];
    liar.stream.read_exact(&mut greeting).unwrap();
    liar.session = Greeting::from_bytes(&greeting).unwrap().session;
    lies(&mut liar, ram);
    // The destination reads to the end, and its answers are read.
    liar.stream.shutdown(Shutdown::Write).unwrap();
    let _ = liar.stream.read_to_end(&mut Vec::new());
    destination.join().unwrap()
}

fn pages(first: u64, count: u64, claimed: u32) -> Vec<u8> {
    let prefix = PagesPrefix {
        runs: 1,
        pages: claimed,
    };
    let mut payload = prefix.to_bytes().to_vec();
    payload.extend(run_to_bytes(PageRange::new(first, count).unwrap()));
    payload.resize(prefix.payload_bytes() as usize, 1);
    payload
}

#[test]
fn an_honest_stream_is_accepted() {
    let result = received(|liar, ram| {
        liar.start(ram);
        liar.section(SectionKind::Pages, &pages(60, 4, 4));
        liar.finish(Totals {
            pages_sent: 4,
            ..Totals::default()
        });
    });
    assert!(result.is_ok(), "{result:?}");
}

#[test]
fn a_recorded_stream_is_refused() {
    let guest = Guest::new(memory());
    guest.write(3);
    let (wire, here, there) = Wire::new(Fault::default(), Fault::default());
    let ram = Arc::new(like(&guest.memory.ram));
    migrate_over(guest.source(), MigrationParams::default(), here, there, ram)
        .sent
        .unwrap();
    let (recorded, _) = wire.join();
    let result = received(|liar, _| liar.bytes(&recorded));
    assert!(matches!(result, Err(ReceiveError::Session)), "{result:?}");
}

#[test]
fn a_stranger_and_another_version_are_told_apart() {
    let result = received(|liar, _| liar.bytes(&[b'G'; 64]));
    assert!(matches!(
        result,
        Err(ReceiveError::Stream(SectionError::Stream(
            StreamError::Magic
        )))
    ));
    let result = received(|liar, ram| {
        let header = StreamHeader {
            session: liar.session,
            number: 0,
            ram_bytes: ram.pages() * 4096,
            regions: 2,
            channels: 0,
            local: false,
            lanes: 0,
        };
        let mut bytes = header.to_bytes();
        bytes[8] = 7;
        liar.bytes(&bytes);
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("version 7"), "{error}");
}

#[test]
fn memory_laid_out_otherwise_is_refused_and_both_sides_know_why() {
    for (low, high, text) in [(63, 9, "elsewhere"), (64, 9, "bytes"), (72, 0, "regions")] {
        let guest = Guest::new(Memory::new(low, high));
        let (here, there) = UnixStream::pair().unwrap();
        let ram = Arc::new(like(&memory().ram));
        let outcome = migrate_over(guest.source(), MigrationParams::default(), here, there, ram);
        assert!(!outcome.destination.runs && !guest.machine.is_stopped());
        for error in [
            outcome.sent.unwrap_err().to_string(),
            outcome.received.unwrap_err().to_string(),
        ] {
            assert!(
                error.contains("other memory") && error.contains(text),
                "{error}"
            );
        }
    }
}

#[test]
fn a_guest_that_needs_another_machine_is_refused_before_its_first_page() {
    let ram = Arc::new(like(&memory().ram));
    let kept = PageRange::new(60, 1).unwrap();
    let mut answer = Vec::new();
    let result = received_into(&ram, |liar, ram| {
        liar.header(ram);
        liar.section(SectionKind::Layout, &ram.layout().to_bytes());
        liar.section(SectionKind::Description, b"a machine with two heads");
        liar.section(SectionKind::Pages, &pages(60, 1, 1));
        liar.stream.shutdown(Shutdown::Write).unwrap();
        liar.stream.read_to_end(&mut answer).unwrap();
    });
    let error = result.unwrap_err();
    assert!(matches!(error, ReceiveError::Unfit(_)), "{error:?}");
    // The source's first answer is the reason, not Accept.
    let (header, reason) = answer.split_first_chunk().unwrap();
    let header = SectionHeader::from_bytes(header).unwrap();
    assert_eq!(header.kind, SectionKind::Abort);
    assert_eq!(reason, error.to_string().as_bytes());
    let mut page = vec![1; 4096];
    ram.read(kept, &mut page).unwrap();
    assert_eq!(page, [0; 4096]);
}

#[test]
fn a_source_that_leaves_its_description_out_is_refused() {
    let result = received(|liar, ram| {
        liar.header(ram);
        liar.section(SectionKind::Layout, &ram.layout().to_bytes());
        liar.section(SectionKind::Pages, &pages(60, 1, 1));
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("where Description was due"), "{error}");
}

#[test]
fn pages_outside_memory_are_refused() {
    let lies = [
        (64, 1),
        (63, 2),
        (0, 65),
        ((1 << 12) + 7, 2),
        (u64::MAX - 2, 1),
        (1 << 52, 1),
    ];
    for (first, count) in lies {
        let result = received(|liar, ram| {
            liar.start(ram);
            liar.section(SectionKind::Pages, &pages(first, count, count as u32));
        });
        assert!(
            matches!(result, Err(ReceiveError::Ram(_))),
            "{first} {result:?}"
        );
        for kind in [SectionKind::Zero, SectionKind::Discard] {
            let run = run_to_bytes(PageRange::new(first, count).unwrap());
            let result = received(|liar, ram| {
                liar.start(ram);
                liar.section(kind, &run);
            });
            assert!(
                matches!(result, Err(ReceiveError::Ram(_))),
                "{first} {result:?}"
            );
        }
    }
}

#[test]
fn nothing_of_a_corrupt_section_gets_into_memory() {
    let ram = Arc::new(like(&memory().ram));
    let good = pages(60, 2, 2);
    let result = received_into(&ram, |liar, ram| {
        liar.start(ram);
        liar.section(SectionKind::Pages, &good);
        let mut corrupt = pages(58, 4, 4);
        let sum = crc32fast::hash(&corrupt);
        *corrupt.last_mut().unwrap() ^= 1;
        liar.summed_section(SectionKind::Pages, &corrupt, sum);
    });
    assert!(matches!(
        result,
        Err(ReceiveError::Stream(SectionError::Checksum { .. }))
    ));
    let mut got = vec![0; 4 * 4096];
    ram.read(PageRange::new(58, 4).unwrap(), &mut got).unwrap();
    let first_bytes: Vec<u8> = got.chunks(4096).map(|page| page[0]).collect();
    assert_eq!(first_bytes, [0, 0, 1, 1]);
}

#[test]
fn a_table_that_does_not_add_up_is_refused() {
    let mut empty_run = pages(5, 1, 1);
    empty_run[16..24].fill(0);
    let mut endless_run = pages(5, 1, 1);
    endless_run[16..24].fill(0xff);
    let payloads = [
        pages(5, 1, 2),
        pages(5, 2, 1),
        empty_run,
        endless_run,
        vec![0; 4],
    ];
    for payload in payloads {
        let result = received(|liar, ram| {
            liar.start(ram);
            liar.section(SectionKind::Pages, &payload);
        });
        assert!(
            matches!(
                result,
                Err(ReceiveError::Stream(SectionError::Stream(
                    StreamError::Malformed(_)
                )))
            ),
            "{result:?}"
        );
    }
}

#[test]
fn sections_lost_repeated_or_out_of_place_are_refused() {
    type Lie = fn(&mut Liar);
    let lies: [(&str, Lie); 6] = [
        ("a section lost", |liar| {
            liar.sequence += 1;
            liar.section(SectionKind::RoundEnd, &[]);
        }),
        ("a section repeated", |liar| {
            liar.sequence -= 1;
            liar.section(SectionKind::RoundEnd, &[]);
        }),
        ("another round", |liar| {
            liar.round = 2;
            liar.section(SectionKind::RoundEnd, &[]);
        }),
        ("a hand-over without commit", |liar| {
            liar.section(SectionKind::HandOver, &[]);
        }),
        ("memory after the state", |liar| {
            liar.section(SectionKind::MachineState, &part("vcpus", STATE));
            liar.section(SectionKind::Pages, &pages(1, 1, 1));
        }),
        ("an answer from the source", |liar| {
            liar.section(SectionKind::Ready, &[]);
        }),
    ];
    for (name, lie) in lies {
        let result = received(|liar, ram| {
            liar.start(ram);
            lie(liar);
        });
        assert!(
            matches!(
                result,
                Err(ReceiveError::Stream(_) | ReceiveError::Round { .. })
            ),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn totals_that_differ_from_what_arrived_are_refused() {
    let result = received(|liar, ram| {
        liar.start(ram);
        liar.section(SectionKind::Pages, &pages(5, 1, 1));
        liar.finish(Totals::default());
    });
    assert!(
        matches!(result, Err(ReceiveError::Totals { .. })),
        "{result:?}"
    );
}

#[test]
fn a_state_that_does_not_fit_is_refused_before_the_hand_over() {
    let result = received(|liar, ram| {
        liar.start(ram);
        liar.section(
            SectionKind::MachineState,
            &part("vcpus", b"another machine's"),
        );
        let totals = Totals {
            bytes: liar.sent.len() as u64,
            ..Totals::default()
        };
        liar.section(SectionKind::Commit, &totals.to_bytes());
        liar.section(SectionKind::HandOver, &[]);
    });
    assert!(
        matches!(result, Err(ReceiveError::Machine(_))),
        "{result:?}"
    );
}

/// Why a state of these sections is refused, which come in order.
fn refused_state(parts: impl IntoIterator<Item = Vec<u8>>) -> String {
    let result = received(|liar, ram| {
        liar.start(ram);
        liar.section(SectionKind::RoundEnd, &[]);
        liar.round += 1;
        for part in parts {
            liar.section(SectionKind::MachineState, &part);
        }
        let totals = Totals {
            rounds: 1,
            bytes: liar.sent.len() as u64,
            ..Totals::default()
        };
        liar.section(SectionKind::Commit, &totals.to_bytes());
        liar.section(SectionKind::HandOver, &[]);
    });
    result.unwrap_err().to_string()
}

#[test]
fn a_state_whose_sections_lie_is_refused_and_the_section_is_named() {
    let vcpus = part("vcpus", STATE);
    for len in 0.."12345678vcpus".len() {
        let error = refused_state([vcpus[..len].to_vec()]);
        assert!(
            error.contains("payload of a MachineState"),
            "{len} bytes: {error}"
        );
    }
    for name in ["", &"a".repeat(256)] {
        let error = refused_state([part(name, STATE)]);
        assert!(error.contains("payload of a MachineState"), "{error}");
    }
    let error = refused_state([]);
    assert!(error.contains("no section \"vcpus\""), "{error}");
    let error = refused_state([vcpus.clone(), vcpus.clone()]);
    assert!(error.contains("two sections \"vcpus\""), "{error}");
    let error = refused_state([vcpus.clone(), part("balloon", STATE)]);
    assert!(error.contains("knows no section \"balloon\""), "{error}");
    let many = (0..=MAX_STATE_SECTIONS).map(|number| part(&format!("n{number}"), &[]));
    let error = refused_state(many);
    assert!(
        error.contains("more than 1024 sections: \"n1024\""),
        "{error}"
    );
    let large = (0..5).map(|number| part(&format!("n{number}"), &[0; 15 << 20]));
    let error = refused_state(large);
    assert!(
        error.contains("too large") && error.contains("\"n4\""),
        "{error}"
    );
}
