// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrations over several channels, with and without compression: the versions of a page never overtake each other, and a channel
//! that dies loses nothing.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use host_migrator::{
    Compression, DestinationMachine, MachineError, MachineState, Migration, MigrationError,
    MigrationParams, Owner, OwnershipRecord, PageSources, ZstdLevel, receive,
};
use software_guest::link::{Link, wire};
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, like};
use software_guest::proxy::{Fault, Wire};
use software_guest::workload::{WRITES_AND_HINTS, Workload};
use software_guest::{Guest, Outcome, connection, migrate, migrate_on, pairs, rounds};

/// More pages than a round on the control connection has.
const PAGES: u64 = 3000;

const COMPRESSIONS: [Compression; 3] = [
    Compression::None,
    Compression::Lz4,
    Compression::Zstd {
        level: ZstdLevel::MIN,
    },
];

fn guest() -> Arc<Guest> {
    Arc::new(Guest::with_all_written(Memory::new(PAGES, 700)))
}

fn migrate_on_channels(guest: &Guest, channels: u32, params: MigrationParams) -> Outcome {
    let ram = Arc::new(like(&guest.memory.ram));
    let params = params.with_multifd_channels(channels);
    migrate_on(guest.source(), params, pairs(1 + channels), ram)
}

#[test]
fn any_number_of_channels_moves_a_guest_that_writes_and_hints() {
    for channels in [1, 2, 3, 8, 128] {
        let sync_pages = [None, Some(700)].into_iter();
        for (sync_pages, compression) in
            sync_pages.flat_map(|sync| COMPRESSIONS.map(|compression| (sync, compression)))
        {
            let guest = guest();
            let workload = Workload::start(&guest, WRITES_AND_HINTS);
            let params = rounds(4)
                .with_sync_pages(sync_pages)
                .with_compression(compression);
            let outcome = migrate_on_channels(&guest, channels, params);
            workload.stop();
            outcome.assert_exact(&guest);
        }
    }
}

#[test]
fn every_channel_carries_pages_and_the_report_counts_them() {
    let guest = guest();
    let params = rounds(1).with_sources(PageSources::ALL.without_hints());
    let outcome = migrate_on_channels(&guest, 2, params);
    outcome.assert_exact(&guest);
    let report = outcome.report();
    assert_eq!(report.channels, 2);
    assert_eq!(report.bytes_by_channel.len(), 2);
    let on_channels: u64 = report.bytes_by_channel.iter().sum();
    let pages = report.totals.pages_sent * spec::PAGE_SIZE;
    assert!(on_channels >= pages && report.wire_bytes > on_channels);
    let received = outcome.received.as_ref().unwrap().received.bytes;
    // The hand-over follows what the destination counts.
    assert!(on_channels < received && received < report.wire_bytes);
}

#[test]
fn a_small_round_leaves_the_channels_alone() {
    let guest = Arc::new(Guest::new(Memory::new(600, 0)));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    let outcome = migrate_on_channels(&guest, 3, rounds(2));
    outcome.assert_exact(&guest);
    assert_eq!(outcome.report().bytes_by_channel.iter().sum::<u64>(), 0);
}

#[test]
fn a_channel_that_is_slow_overtakes_nothing() {
    for sync_pages in [None, Some(900)] {
        let guest = guest();
        let workload = Workload::start(&guest, WRITES_AND_HINTS);
        let slow = Link {
            delay: Duration::from_millis(60),
            ..Link::default()
        };
        let mut streams = pairs(2);
        streams.push(wire(slow, Link::default()));
        let ram = Arc::new(like(&guest.memory.ram));
        let params = rounds(4).with_sync_pages(sync_pages);
        let outcome = migrate_on(
            guest.source(),
            params.with_multifd_channels(2),
            streams,
            ram,
        );
        workload.stop();
        outcome.assert_exact(&guest);
    }
}

/// Migrates over two channels, the first of which has a fault on the way to the destination.
fn migrate_with_fault(guest: &Guest, compression: Compression, fault: Fault) -> (Outcome, usize) {
    let mut streams = pairs(3);
    let (wire, here, there) = Wire::new(fault, Fault::default());
    streams[1] = (here, there);
    let ram = Arc::new(like(&guest.memory.ram));
    let params = rounds(2)
        .with_multifd_channels(2)
        .with_compression(compression)
        .with_peer_timeout(Duration::from_secs(2));
    let outcome = migrate_on(guest.source(), params, streams, ram);
    let carried = wire.join().0.len();
    (outcome, carried)
}

/// The migration has ended cleanly: the guest runs there, or it runs here and can be migrated again.
fn assert_clean(guest: &Guest, outcome: Outcome, place: &str) {
    match &outcome.sent {
        Ok(_) => {
            assert!(outcome.destination.runs, "{place}");
            assert_eq!(outcome.wrong_pages(&guest.memory), [], "{place}");
        }
        Err(error) => {
            assert!(
                !matches!(error, MigrationError::HandedOverUnconfirmed(_)),
                "{place}: a channel has nothing to do with the hand-over, and yet {error}"
            );
            assert!(!outcome.destination.runs, "{place}");
            assert_eq!(guest.ownership.get().owner, Owner::Here, "{place}");
            assert!(!guest.machine.is_stopped(), "{place}");
            assert!(outcome.received.is_err(), "{place}");
            guest.write(2);
            let again = migrate(outcome.source, MigrationParams::default());
            assert!(again.destination.runs, "{place}: {:?}", again.sent);
            assert_eq!(again.wrong_pages(&guest.memory), [], "{place}");
        }
    }
    assert!(!guest.vcpu_log.is_running() && !guest.own_log.is_running());
}

#[test]
fn a_channel_that_is_cut_stalled_or_damaged_ends_the_migration_and_the_guest_runs_on() {
    let carried = COMPRESSIONS.map(|compression| {
        let (outcome, carried) = migrate_with_fault(&guest(), compression, Fault::default());
        assert!(outcome.sent.is_ok() && carried > 1 << 20);
        carried
    });
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let runs = std::env::var("LACUNA_CHANNEL_FAULTS").map_or(24, |runs| runs.parse().unwrap());
    for run in 0..runs {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let compression = (random >> 20) as usize % COMPRESSIONS.len();
        let at = (random >> 33) as usize % carried[compression];
        let compression = COMPRESSIONS[compression];
        let fault = match run % 3 {
            0 => Fault {
                cut_after: Some(at),
                ..Fault::default()
            },
            // The destination gives a silent channel up after its patience, so these take longest.
            1 if run % 10 == 1 => Fault {
                stall_after: Some(at),
                ..Fault::default()
            },
            _ => Fault {
                flip: Some(at),
                ..Fault::default()
            },
        };
        let guest = guest();
        let (outcome, _) = migrate_with_fault(&guest, compression, fault);
        assert_clean(&guest, outcome, &format!("{compression:?}, {fault:?}"));
    }
}

#[test]
fn a_channel_that_is_damaged_is_named_with_the_reason_on_both_sides() {
    for compression in COMPRESSIONS {
        let guest = guest();
        // In the content of its first section.
        let fault = Fault {
            flip: Some(100_000),
            ..Fault::default()
        };
        let (outcome, _) = migrate_with_fault(&guest, compression, fault);
        let sent = outcome.sent.as_ref().unwrap_err().to_string();
        let received = outcome.received.as_ref().unwrap_err().to_string();
        assert!(received.starts_with("channel "), "{received}");
        assert!(received.contains("checksum"), "{received}");
        assert!(sent.contains(&received), "{sent}");
        assert_clean(&guest, outcome, "damaged");
    }
}

#[test]
fn a_cancel_is_the_reason_on_both_sides() {
    let guest = guest();
    let (here, there): (Vec<_>, Vec<_>) = pairs(3).into_iter().unzip();
    let (here, there) = (connection(here), connection(there));
    let ram = Arc::new(like(&guest.memory.ram));
    let destination = thread::spawn(move || {
        let (mut machine, ownership) = (SoftDestination::default(), OwnershipRecord::there());
        receive(there, &ram, &mut machine, &ownership, &mut |_| ())
    });
    let params = rounds(2)
        .with_multifd_channels(2)
        .with_max_bandwidth(4 << 20);
    let migration = Migration::start(guest.source(), params, here).unwrap();
    while migration.status().ram.multifd_bytes == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(migration.cancel());
    let (_, sent) = migration.join();
    assert!(matches!(sent, Err(MigrationError::Cancelled)), "{sent:?}");
    let received = destination.join().unwrap().unwrap_err().to_string();
    assert!(
        received.contains("the migration was cancelled"),
        "{received}"
    );
    assert!(!guest.machine.is_stopped());
}

/// A destination that loses a device when the first pages have come.
#[derive(Default)]
struct LosesItsDevice {
    checks: u32,
    machine: SoftDestination,
}

impl DestinationMachine for LosesItsDevice {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        self.machine.judge(description)
    }

    fn check(&mut self) -> Result<(), MachineError> {
        self.checks += 1;
        if self.checks == 1 {
            return Ok(());
        }
        Err(MachineError {
            action: "take the guest",
            reason: "its balloon is lost".into(),
        })
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        self.machine.load(state)
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.machine.run()
    }
}

#[test]
fn a_destination_that_loses_a_device_says_so_while_the_channels_carry_the_round() {
    let guest = guest();
    let (here, there): (Vec<_>, Vec<_>) = pairs(3).into_iter().unzip();
    let (here, there) = (connection(here), connection(there));
    let ram = Arc::new(like(&guest.memory.ram));
    let destination = thread::spawn(move || {
        let (mut machine, ownership) = (LosesItsDevice::default(), OwnershipRecord::there());
        receive(there, &ram, &mut machine, &ownership, &mut |_| ())
    });
    // The round takes longer than a few heartbeats.
    let params = rounds(2)
        .with_multifd_channels(2)
        .with_max_bandwidth(2 << 20);
    let migration = Migration::start(guest.source(), params, here).unwrap();
    let monitor = migration.monitor();
    let (_, sent) = migration.join();
    let sent = sent.unwrap_err().to_string();
    assert!(sent.contains("its balloon is lost"), "{sent}");
    assert!(destination.join().unwrap().is_err());
    let transferred = monitor.status().ram.transferred;
    assert!(
        transferred < 3 * guest.memory.ram.pages() * spec::PAGE_SIZE / 4,
        "{transferred}"
    );
    assert!(!guest.machine.is_stopped());
}

#[test]
fn a_channel_that_has_no_connection_is_named_and_the_guest_runs_on() {
    let guest = guest();
    let ram = Arc::new(like(&guest.memory.ram));
    let params = rounds(1).with_multifd_channels(2);
    let outcome = migrate_on(guest.source(), params, pairs(1), ram);
    let error = outcome.sent.as_ref().unwrap_err().to_string();
    assert!(
        error.contains("only 0 of 2 channels have joined"),
        "{error}"
    );
    assert_clean(&guest, outcome, "without connections");
}

#[test]
fn a_channel_that_stalls_is_given_up_and_the_guest_runs_on() {
    let guest = guest();
    let fault = Fault {
        stall_after: Some(300_000),
        ..Fault::default()
    };
    let (outcome, _) = migrate_with_fault(&guest, Compression::None, fault);
    assert!(outcome.sent.is_err());
    assert_clean(&guest, outcome, "stalled");
}
