// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrations over TLS: as exact as without, one full handshake for all channels, one owner wherever the link dies.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use host_migrator::wire::{Handshakes, TlsConfig};
use host_migrator::{
    Address, Connection, DestinationMachine, Listener, MigrationError, MigrationParams, Owner,
    PageSources,
};
use rustix::io::{FdFlags, fcntl_setfd};
use software_guest::certificates::Authority;
use software_guest::memory::{Memory, like};
use software_guest::proxy::{Fault, Wire};
use software_guest::waiting::{FOR_EVER, Waiting};
use software_guest::workload::{WRITES_AND_HINTS, Workload};
use software_guest::{Guest, Outcome, migrate, migrate_secured, pairs, rounds};

/// More pages than a round on the control connection has.
const PAGES: u64 = 3000;
/// Header, content type and tag of a TLS 1.3 record.
const OVERHEAD: usize = 22;
/// The record that carries a section without payload, such as HandOver.
const EMPTY_SECTION: usize = 40 + OVERHEAD;
/// The record that says that no more is sent.
const CLOSE: usize = 2 + OVERHEAD;

fn guest() -> Arc<Guest> {
    Arc::new(Guest::with_all_written(Memory::new(PAGES, 700)))
}

/// Migrates between two ends of one CA.
fn migrate_on(
    guest: &Guest,
    params: MigrationParams,
    streams: Vec<(UnixStream, UnixStream)>,
    authority: &Authority,
) -> Outcome {
    let ram = Arc::new(like(&guest.memory.ram));
    let (source, destination) = (authority.side(), authority.side());
    migrate_secured(guest.source(), params, streams, ram, &source, &destination)
}

/// Migrates a small guest over one connection with a fault. Returns what the source has sent.
fn migrate_through(guest: &Guest, forth: Fault, back: Fault, ends: &Ends) -> (Outcome, Vec<u8>) {
    let (wire, here, there) = Wire::new(forth, back);
    let ram = Arc::new(like(&guest.memory.ram));
    let outcome = migrate_secured(
        guest.source(),
        MigrationParams::default(),
        vec![(here, there)],
        ram,
        &ends.source,
        &ends.destination,
    );
    (outcome, wire.join().0)
}

/// Two ends of one CA.
struct Ends {
    source: TlsConfig,
    destination: TlsConfig,
}

impl Ends {
    fn new() -> Self {
        let authority = Authority::new();
        let (source, destination) = (authority.side(), authority.side());
        Self {
            source,
            destination,
        }
    }
}

#[test]
fn any_number_of_channels_moves_a_guest_that_writes_and_hints_exactly() {
    let authority = Authority::new();
    for channels in [1, 2, 8, 128] {
        for sources in [PageSources::ALL, PageSources::ALL.without_hints()] {
            let guest = guest();
            let workload = Workload::start(&guest, WRITES_AND_HINTS);
            let params = rounds(4)
                .with_sources(sources)
                .with_multifd_channels(channels);
            let outcome = migrate_on(&guest, params, pairs(1 + channels), &authority);
            workload.stop();
            outcome.assert_exact(&guest);
        }
    }
}

#[test]
fn channels_resume_the_session_of_one_full_handshake() {
    let authority = Authority::new();
    let (source, destination) = (authority.side(), authority.side());
    for (migrations, channels) in [(1, 128), (2, 8)] {
        let before = destination.handshakes().resumed;
        let guest = guest();
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let waiting = Waiting::at(listener.with_tls(&destination), &guest);
        let connection = Connection::connect_tls(&waiting.address, FOR_EVER, &source).unwrap();
        assert!(connection.is_encrypted());
        let params = rounds(2).with_multifd_channels(channels);
        waiting.receives_over(connection, &guest, params);
        let Handshakes { full, resumed, .. } = destination.handshakes();
        assert_eq!((full, resumed - before), (migrations, u64::from(channels)));
        assert_eq!(source.handshakes(), destination.handshakes());
    }
}

/// The address of `sockets`, as of a process that was started with them.
fn handed_down(sockets: Vec<UnixStream>) -> Address {
    let numbers = sockets.into_iter().map(|socket| {
        fcntl_setfd(&socket, FdFlags::empty()).unwrap();
        socket.into_raw_fd() as u32
    });
    Address::Fd(numbers.collect())
}

#[test]
fn every_socket_that_a_process_was_started_with_is_encrypted() {
    for (sockets, channels) in [(1, 1), (4, 3)] {
        let authority = Authority::new();
        let (source, destination) = (authority.side(), authority.side());
        let guest = guest();
        let (near, far) = pairs(sockets).into_iter().unzip();
        let listener = Listener::bind(&handed_down(far)).unwrap();
        let waiting = Waiting::at(listener.with_tls(&destination), &guest);
        let connection = Connection::connect_tls(&handed_down(near), FOR_EVER, &source).unwrap();
        let params = rounds(2).with_multifd_channels(channels);
        let report = waiting.receives_over(connection, &guest, params);
        assert!(report.tls);
        // A side that awaits a handshake takes nothing that is plain.
        let Handshakes { full, resumed, .. } = destination.handshakes();
        assert_eq!((full, resumed), (1, u64::from(sockets - 1)));
    }
}

#[test]
fn nothing_of_a_guest_can_be_read_on_the_wire() {
    let guest = Guest::with_six_pages();
    let (outcome, stream) =
        migrate_through(&guest, Fault::default(), Fault::default(), &Ends::new());
    outcome.assert_exact(&guest);
    let mut page = [0; 4096];
    let of = software_guest::memory::one(10);
    guest.memory.ram.read(of, &mut page).unwrap();
    let reads = |bytes: &[u8]| stream.windows(bytes.len()).any(|window| window == bytes);
    assert!(!reads(&page[..16]) && !reads(b"LACUNA"));
    assert!(reads(&[0x17, 3, 3]), "no TLS record");
}

/// The lengths of the records of a TLS stream. The last may be cut.
fn records(mut stream: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = stream {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(5 + length);
        stream = rest.get(length..).unwrap_or_default();
    }
    lengths
}

/// Checks what must hold however a migration ended.
fn assert_one_owner(guest: &Guest, mut outcome: Outcome, place: &str) {
    let (here, there) = (guest.ownership.get().owner, outcome.arrived.get().owner);
    let runs_there = outcome.destination.runs;
    assert_eq!(runs_there, there == Owner::Here, "{place}");
    match &outcome.sent {
        Ok(_) => assert!(runs_there && here == Owner::There, "{place}"),
        Err(MigrationError::HandedOverUnconfirmed(_)) => {
            assert_eq!(here, Owner::Undecided, "{place}");
            if !runs_there {
                assert_eq!(there, Owner::Undecided, "{place}");
                // Whom an operator decides for has the whole guest.
                outcome.arrived.claim(&guest.trace).unwrap();
                outcome.destination.run().unwrap();
            }
            assert_eq!(outcome.wrong_pages(&guest.memory), [], "{place}");
        }
        Err(_) => {
            assert!(!runs_there && here == Owner::Here, "{place}");
            assert!(!guest.machine.is_stopped(), "{place}");
            guest.write(2);
            let again = migrate(outcome.source, MigrationParams::default());
            assert!(again.destination.runs, "{place}: {:?}", again.sent);
            assert_eq!(again.wrong_pages(&guest.memory), [], "{place}");
        }
    }
}

#[test]
fn a_link_cut_in_the_record_that_hands_over_leaves_the_guest_to_an_operator() {
    let ends = Ends::new();
    // The stream without heartbeats, which come only on a slow machine.
    let whole = loop {
        let guest = Guest::with_six_pages();
        let (outcome, stream) = migrate_through(&guest, Fault::default(), Fault::default(), &ends);
        outcome.assert_exact(&guest);
        let lengths = records(&stream);
        let sections = lengths.iter().filter(|&&length| length == EMPTY_SECTION);
        // RoundEnd and HandOver, and before them Finished or none of that length.
        if sections.count() <= 3 {
            break stream;
        }
    };
    let lengths = records(&whole);
    assert_eq!(lengths[lengths.len() - 2..], [EMPTY_SECTION, CLOSE]);
    let begin = whole.len() - CLOSE - EMPTY_SECTION;
    for taken in 0..EMPTY_SECTION {
        let place = format!("{taken} bytes of the hand-over arrived");
        loop {
            let guest = Guest::with_six_pages();
            let cut = Fault {
                cut_after: Some(begin + taken),
                ..Fault::default()
            };
            let (outcome, stream) = migrate_through(&guest, cut, Fault::default(), &ends);
            let there = outcome.arrived.get().owner;
            // A heartbeat moves the record: try again.
            let reached = records(&stream).starts_with(&lengths[..lengths.len() - 2])
                && matches!(outcome.sent, Err(MigrationError::HandedOverUnconfirmed(_)));
            assert_one_owner(&guest, outcome, &place);
            if reached {
                // Nothing of a record that is cut can be decrypted.
                assert_eq!(there, Owner::Undecided, "{place}");
                break;
            }
        }
    }
}

#[test]
fn a_wire_cut_or_damaged_anywhere_leaves_the_guest_with_one_owner() {
    let ends = Ends::new();
    let run = |forth, back, place: &str| {
        let guest = Guest::with_six_pages();
        let (outcome, stream) = migrate_through(&guest, forth, back, &ends);
        let damaged = outcome.received.as_ref().err().map(ToString::to_string);
        assert_one_owner(&guest, outcome, place);
        (stream.len(), damaged)
    };
    let (length, _) = run(Fault::default(), Fault::default(), "whole");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for place in 0..150 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = Some((random >> 33) as usize % length);
        let fault = Fault {
            cut_after: at.filter(|_| place % 2 == 0),
            flip: at.filter(|_| place % 2 == 1),
            ..Fault::default()
        };
        if place % 3 == 0 {
            run(Fault::default(), fault, &format!("{fault:?} to the source"));
        } else {
            run(
                fault,
                Fault::default(),
                &format!("{fault:?} to the destination"),
            );
        }
    }
}

#[test]
fn a_channel_cut_stalled_or_damaged_at_random_ends_the_migration_and_the_guest_runs_on() {
    let authority = Authority::new();
    let run = |fault| {
        let guest = guest();
        let mut streams = pairs(3);
        let (wire, here, there) = Wire::new(fault, Fault::default());
        streams[1] = (here, there);
        let params = rounds(2)
            .with_multifd_channels(2)
            .with_peer_timeout(Duration::from_secs(2));
        let outcome = migrate_on(&guest, params, streams, &authority);
        let carried = wire.join().0.len();
        assert_one_owner(&guest, outcome, &format!("{fault:?}"));
        carried
    };
    let carried = run(Fault::default());
    assert!(carried > 1 << 20);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let runs = std::env::var("LACUNA_CHANNEL_FAULTS").map_or(18, |runs| runs.parse().unwrap());
    for place in 0..runs {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = Some((random >> 33) as usize % carried);
        run(Fault {
            cut_after: at.filter(|_| place % 3 == 0),
            flip: at.filter(|_| place % 3 == 1 || place > 6 && place % 3 == 2),
            stall_after: at.filter(|_| place % 3 == 2 && place <= 6),
            ..Fault::default()
        });
    }
}

#[test]
fn a_damaged_record_is_named_on_both_sides() {
    let guest = guest();
    let (wire, here, there) = Wire::new(
        Fault {
            flip: Some(100_000),
            ..Fault::default()
        },
        Fault::default(),
    );
    let outcome = migrate_on(&guest, rounds(1), vec![(here, there)], &Authority::new());
    wire.join();
    let (sent, received) = (outcome.sent.unwrap_err(), outcome.received.unwrap_err());
    assert!(
        received.to_string().contains("damaged or forged"),
        "{received}"
    );
    assert!(
        sent.to_string().contains("a record was damaged on its way"),
        "{sent}"
    );
}

#[test]
fn a_peer_that_ends_without_a_close_is_named_as_killed_or_cut() {
    let guest = guest();
    let (wire, here, there) = Wire::new(
        Fault {
            cut_after: Some(1 << 20),
            ..Fault::default()
        },
        Fault::default(),
    );
    let outcome = migrate_on(&guest, rounds(1), vec![(here, there)], &Authority::new());
    wire.join();
    let received = outcome.received.as_ref().unwrap_err().to_string();
    assert!(received.contains("ended without a TLS close"), "{received}");
    assert_one_owner(&guest, outcome, "killed");
}

#[test]
fn heartbeats_keep_an_encrypted_connection_alive_while_nothing_else_is_sent() {
    let guest = guest();
    // Both sides wait longer than their patience: the source for its bandwidth.
    let params = rounds(1)
        .with_multifd_channels(2)
        .with_peer_timeout(Duration::from_secs(2))
        .with_max_bandwidth(3 << 20);
    let outcome = migrate_on(&guest, params, pairs(3), &Authority::new());
    outcome.assert_exact(&guest);
}
