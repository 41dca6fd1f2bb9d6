// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connections that die and bytes that change, at every place of a migration: nothing is lost, and the guest never runs
//! on both sides.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use host_migrator::{
    Connection, DestinationMachine, MachineError, MachineState, Migration, MigrationError,
    MigrationParams, Owner, OwnershipRecord, receive,
};
use software_guest::memory::{Memory, like};
use software_guest::proxy::{Fault, Wire};
use software_guest::{Guest, Outcome, migrate, migrate_over};
use spec::stream::{SECTION_HEADER_BYTES, STREAM_HEADER_BYTES, SectionHeader, SectionKind};
use spec::trace::{Event, Record};

fn guest() -> Guest {
    let guest = Guest::new(Memory::new(70, 0));
    for pfn in [1, 2, 3, 10, 63, 64] {
        guest.write(pfn);
    }
    guest
}

fn migrate_through(guest: &Guest, forth: Fault, back: Fault) -> (Outcome, Vec<u8>, Vec<u8>) {
    let (wire, here, there) = Wire::new(forth, back);
    let ram = Arc::new(like(&guest.memory.ram));
    let outcome = migrate_over(guest.source(), MigrationParams::default(), here, there, ram);
    let (from_source, from_destination) = wire.join();
    (outcome, from_source, from_destination)
}

/// The offsets at which the sections of a stream begin, and that of its end.
fn borders(stream: &[u8]) -> Vec<(SectionKind, usize)> {
    let mut at = STREAM_HEADER_BYTES;
    let mut borders = Vec::new();
    while at < stream.len() {
        let header = stream[at..at + SECTION_HEADER_BYTES].try_into().unwrap();
        let header = SectionHeader::from_bytes(header).unwrap();
        borders.push((header.kind, at));
        at += SECTION_HEADER_BYTES + header.length as usize;
    }
    borders
}

/// Checks what must hold however a migration ended. Where neither side knows the owner, an operator decides for a
/// `side`, and the whole guest goes on there.
fn assert_one_owner(guest: Guest, mut outcome: Outcome, side: Side, place: &str) {
    let runs_there = outcome.destination.runs;
    let handed_over = guest.machine.is_handed_over();
    assert!(
        !runs_there || handed_over,
        "{place}: it runs at the destination and belongs to the source"
    );
    let (here, there) = (guest.ownership.get(), outcome.arrived.get());
    assert_eq!(
        runs_there,
        there.owner == Owner::Here,
        "{place}: the destination's record is {there:?}"
    );
    match &outcome.sent {
        Ok(_) => {
            assert!(runs_there, "{place}: it runs on neither side");
            assert_eq!(outcome.wrong_pages(&guest.memory), [], "{place}");
            assert_eq!(here.owner, Owner::There, "{place}");
            assert_eq!(
                (here.session, here.number),
                (there.session, there.number),
                "{place}"
            );
        }
        Err(MigrationError::HandedOverUnconfirmed(_)) => {
            assert!(handed_over, "{place}");
            assert_eq!(here.owner, Owner::Undecided, "{place}");
            if !runs_there {
                assert_eq!(there.owner, Owner::Undecided, "{place}");
                assert_eq!(here.session, there.session, "{place}");
                decide(&guest, &mut outcome, side, place);
            }
            assert_eq!(outcome.wrong_pages(&guest.memory), [], "{place}");
        }
        Err(_) => {
            assert_eq!(here.owner, Owner::Here, "{place}");
            assert!(
                !handed_over && !guest.machine.is_stopped(),
                "{place}: it runs on neither side"
            );
            assert!(outcome.received.is_err(), "{place}");
            // A second migration loses nothing, whatever the first has left behind.
            guest.write(2);
            let again = migrate(outcome.source, MigrationParams::default());
            assert!(again.destination.runs, "{place}: {:?}", again.sent);
            assert_eq!(again.wrong_pages(&guest.memory), [], "{place}");
        }
    }
    assert!(
        !guest.vcpu_log.is_running() && !guest.own_log.is_running(),
        "{place}"
    );
}

/// All offsets of the last `tail` bytes of `stream`, all section borders with their neighbours, and every `stride`-th
/// offset.
fn places(stream: &[u8], tail: usize, stride: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..stream.len()).step_by(stride).collect();
    places.extend(stream.len() - tail..stream.len());
    for (_, at) in borders(stream) {
        places.extend([at - 1, at, at + 1]);
    }
    places.sort_unstable();
    places.dedup();
    places
}

/// The side for which an operator decides.
#[derive(Clone, Copy, Debug)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn of(place: usize) -> Self {
        if place.is_multiple_of(2) {
            Self::Source
        } else {
            Self::Destination
        }
    }
}

/// Has an operator decide where neither side knows. The guest goes on there, and the other side's record is older.
fn decide(guest: &Guest, outcome: &mut Outcome, side: Side, place: &str) {
    let trace = &guest.trace;
    let (winner, loser) = match side {
        Side::Source => (&guest.ownership, &outcome.arrived),
        Side::Destination => (&outcome.arrived, &guest.ownership),
    };
    winner.claim(trace).unwrap();
    assert_eq!(winner.get().owner, Owner::Here, "{place}");
    assert!(winner.get().number > loser.get().number, "{place}");
    match side {
        Side::Destination => outcome.destination.run().unwrap(),
        Side::Source => {
            guest.machine.take_back();
            guest.write(2);
            let again = migrate(guest.source(), MigrationParams::default());
            assert!(again.destination.runs, "{place}: {:?}", again.sent);
            assert_eq!(again.wrong_pages(&guest.memory), [], "{place}");
            // The memory that is compared afterwards.
            outcome.ram = again.ram;
        }
    }
}

#[test]
fn a_connection_cut_at_any_place_leaves_the_guest_with_one_owner() {
    let (_, stream, answers) = migrate_through(&guest(), Fault::default(), Fault::default());
    let (_, commit) = *borders(&stream)
        .iter()
        .find(|(kind, _)| *kind == SectionKind::MachineState)
        .unwrap();
    let (mut handed_over, mut undecided) = (0, 0);
    for cut in places(&stream, stream.len() - commit, 1009) {
        let guest = guest();
        let fault = Fault {
            cut_after: Some(cut),
            ..Fault::default()
        };
        let (outcome, ..) = migrate_through(&guest, fault, Fault::default());
        assert!(outcome.sent.is_err());
        handed_over += u32::from(guest.machine.is_handed_over());
        undecided += u32::from(outcome.arrived.get().owner == Owner::Undecided);
        assert_one_owner(
            guest,
            outcome,
            Side::of(cut),
            &format!("cut after byte {cut} from the source"),
        );
    }
    assert!(handed_over > 0, "no cut was in the hand-over");
    assert!(undecided > 1, "no destination was left undecided");
    for cut in 0..answers.len() {
        let guest = guest();
        let fault = Fault {
            cut_after: Some(cut),
            ..Fault::default()
        };
        let (outcome, ..) = migrate_through(&guest, Fault::default(), fault);
        assert_one_owner(
            guest,
            outcome,
            Side::of(cut),
            &format!("cut after byte {cut} from the destination"),
        );
    }
}

#[test]
fn a_bit_flipped_at_any_place_is_found_and_the_guest_has_one_owner() {
    let (_, stream, answers) = migrate_through(&guest(), Fault::default(), Fault::default());
    let mut flips = places(&stream, 0, 997);
    for (_, at) in borders(&stream) {
        flips.extend(at..at + SECTION_HEADER_BYTES);
    }
    flips.extend(0..STREAM_HEADER_BYTES);
    for flip in flips {
        let guest = guest();
        let fault = Fault {
            flip: Some(flip),
            ..Fault::default()
        };
        let (outcome, ..) = migrate_through(&guest, fault, Fault::default());
        assert!(outcome.received.is_err(), "byte {flip} from the source");
        assert!(!outcome.destination.runs, "byte {flip} from the source");
        let place = format!("byte {flip} from the source");
        assert_one_owner(guest, outcome, Side::of(flip), &place);
    }
    for flip in 0..answers.len() {
        let guest = guest();
        let fault = Fault {
            flip: Some(flip),
            ..Fault::default()
        };
        let (outcome, ..) = migrate_through(&guest, Fault::default(), fault);
        assert!(outcome.sent.is_err(), "byte {flip} from the destination");
        let place = format!("byte {flip} from the destination");
        assert_one_owner(guest, outcome, Side::of(flip), &place);
    }
}

#[test]
fn the_source_learns_why_the_destination_gave_up() {
    let guest = guest();
    let (_, stream, _) = migrate_through(&guest, Fault::default(), Fault::default());
    let (_, pages) = borders(&stream)[2];
    let fault = Fault {
        flip: Some(pages + 1000),
        ..Fault::default()
    };
    let (outcome, ..) = migrate_through(&self::guest(), fault, Fault::default());
    let error = outcome.sent.unwrap_err().to_string();
    assert!(
        error.contains("checksum of section 2 (Pages) is wrong"),
        "{error}"
    );
}

/// A destination that loses a device while memory arrives.
struct LosesADevice;

impl DestinationMachine for LosesADevice {
    fn judge(&mut self, _description: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Err(MachineError {
            action: "take a guest",
            reason: "the balloon back end is lost".into(),
        })
    }

    fn load(&mut self, _state: &mut MachineState) -> Result<(), MachineError> {
        panic!("everything was sent to a machine that had lost a device");
    }

    fn run(&mut self) -> Result<(), MachineError> {
        panic!("nothing was loaded");
    }
}

#[test]
fn a_destination_that_loses_a_device_says_so_before_the_rest_of_memory_is_sent() {
    let guest = guest();
    let ram = Arc::new(like(&guest.memory.ram));
    let (here, there) = UnixStream::pair().unwrap();
    let destination = thread::spawn(move || {
        let channel = Connection::try_from(there).unwrap();
        let mut placed = 0;
        receive(
            channel,
            &ram,
            &mut LosesADevice,
            &OwnershipRecord::there(),
            &mut |status| placed = status.pages,
        )
        .unwrap_err();
        placed
    });
    let channel = Connection::try_from(here).unwrap();
    let params = MigrationParams::default();
    let (source, sent) = Migration::start(guest.source(), params, channel)
        .unwrap()
        .join();
    let error = sent.unwrap_err().to_string();
    assert!(error.contains("the balloon back end is lost"), "{error}");
    assert_eq!(destination.join().unwrap(), 0);
    let (records, _) = source.trace.records();
    let stopped = |record: &Record| record.event == Event::Paused;
    assert!(!records.iter().flatten().any(stopped));
    assert!(!guest.machine.is_stopped() && !guest.machine.is_handed_over());
}
