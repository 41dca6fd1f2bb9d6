// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest that is throttled stops at once, loses nothing, and is migrated in whatever state the throttle is.

use std::env;
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use host_migrator::{
    Connection, DirtyLog, LogSource, Migration, MigrationBitmap, MigrationParams, OwnershipRecord,
    Source, SourceMachine, Throttle, ThrottleParams, receive,
};
use kvm_ioctls::{Cap, Kvm};
use reference_vmm::dirty_ring::RING_ENTRIES;
use reference_vmm::{BareWorkload, DirtyLogKind, Guest, GuestStatus, MachineConfig};
use spec::PAGE_SIZE;
use spec::bare::StatusWord;

use crate::guests::{
    COUNTED, COUNTED_PAGES, MAILBOX, READ, config, counter, elf, guest_on, have_kvm, incoming,
    program, writer_and_reader,
};

/// How many migrations follow each other. `LACUNA_THROTTLED_RUNS` sets another number.
const RUNS: u32 = 5;

#[test]
fn a_throttled_guest_that_is_paused_often_loses_no_write() {
    if !have_kvm() {
        return;
    }
    let mut subject = program(16 << 20, &counter());
    let mut throttle = subject.machine.throttle();
    let mut logs = subject.machine.dirty_logs();
    let log: &mut dyn DirtyLog = &mut **logs
        .iter_mut()
        .find(|log| log.source() == LogSource::Kvm)
        .unwrap();
    log.start().unwrap();
    let counted = |subject: &crate::guests::Subject| -> Vec<u64> {
        let pages = (COUNTED..).step_by(PAGE_SIZE as usize);
        pages
            .take(COUNTED_PAGES as usize)
            .map(|gpa| subject.word(gpa))
            .collect()
    };
    let mut shadow = counted(&subject);
    for round in 0..100u32 {
        throttle.set([99, 0, 50, 80][round as usize % 4]).unwrap();
        let count = subject.word(MAILBOX);
        subject.machine.start().unwrap();
        if round % 10 == 0 {
            subject.wait("a throttled guest to go on", |subject| {
                subject.word(MAILBOX) > count
            });
        }
        subject.machine.stop_vcpus().unwrap();
        let (now, count) = (counted(&subject), subject.word(MAILBOX));
        let bitmap = MigrationBitmap::new(subject.machine.ram().bitmap_pages());
        log.harvest(&bitmap).unwrap();
        for (page, (old, new)) in shadow.iter().zip(&now).enumerate() {
            let logged = bitmap.contains(COUNTED / PAGE_SIZE + page as u64);
            assert!(old == new || logged, "round {round}, page {page}");
        }
        assert_eq!(subject.word(MAILBOX), count, "a paused guest counts");
        shadow = now;
    }
}

#[test]
fn guests_that_are_throttled_from_their_first_millisecond_migrate_again_and_again() {
    if !have_kvm() {
        return;
    }
    let runs = env::var("LACUNA_THROTTLED_RUNS").ok();
    let runs = runs.map_or(RUNS, |runs| runs.parse().expect("a number of runs"));
    let config = config(32 << 20, 2);
    for run in 0..runs {
        let workload = BareWorkload {
            seed: run.into(),
            in_use_bytes: 4 << 20,
            dirty_rate: 100 << 20,
            ..Default::default()
        };
        let mut source = guest_on(&config, &Guest::Bare(workload));
        let mut from_the_start = source.machine.throttle();
        from_the_start.set(90).unwrap();
        source.machine.start().unwrap();
        // In every second run the guest is migrated before it has done anything.
        if run % 2 == 0 {
            source.wait("the guest to write", |subject| {
                let status = GuestStatus::read(subject.machine.ram()).unwrap();
                status.is_some_and(|status| status.word(StatusWord::Writes) > 0)
            });
        }
        let mut destination = incoming(&config);
        let (here, there) = UnixStream::pair().unwrap();
        let there = Connection::try_from(there).unwrap();
        let arrival = thread::spawn(move || {
            let ram = Arc::clone(destination.machine.ram());
            let record = OwnershipRecord::there();
            let received = receive(there, &ram, &mut destination.machine, &record, &mut |_| ());
            received.map(|_| destination)
        });
        let (ram, throttle) = (Arc::clone(source.machine.ram()), source.machine.throttle());
        let logs = source.machine.dirty_logs();
        let mut parts = Source::new(Box::new(&mut source.machine), ram)
            .logs(logs)
            .throttle(throttle);
        let params = MigrationParams::default()
            .with_auto_converge(ThrottleParams::default())
            .with_max_rounds(5);
        let here = Connection::try_from(here).unwrap();
        Migration::new(here, params).run(&mut parts).unwrap();
        drop(parts);
        let mut destination = arrival.join().unwrap().unwrap();
        let passes = |subject: &crate::guests::Subject| {
            let status = GuestStatus::read(subject.machine.ram()).unwrap();
            status.map_or(0, |status| status.word(StatusWord::FullPasses))
        };
        let before = passes(&destination);
        destination.wait("the guest's checks", |subject| {
            passes(subject) >= before + 2
        });
        let status = GuestStatus::read(destination.machine.ram())
            .unwrap()
            .unwrap();
        let wrong = [StatusWord::WrongStamps, StatusWord::WrongHeartbeats];
        assert_eq!(wrong.map(|word| status.word(word)), [0, 0], "run {run}");
    }
}

#[test]
fn a_limit_of_what_each_vcpu_dirties_holds_the_writer_and_never_the_reader() {
    if !have_kvm() {
        return;
    }
    let config = MachineConfig {
        dirty_log: DirtyLogKind::Ring(RING_ENTRIES),
        ..config(64 << 20, 2)
    };
    if !Kvm::new().unwrap().check_extension(Cap::DirtyLogRing) {
        return spec_testing::skipped("this KVM has no dirty rings");
    }
    let guest = Guest::BareImage(elf(&writer_and_reader()), BareWorkload::default());
    let mut subject = guest_on(&config, &guest);
    let watch = subject.machine.watch();
    let mut throttle = subject.machine.throttle();
    let mut log = subject.machine.dirty_logs().remove(0);
    subject.machine.start().unwrap();
    // KVM logs a page as dirty when it is touched for the first time, by a reader, too.
    subject.wait("both to have been at all pages", |subject| {
        let passed = |counter| subject.word(counter) > 2 * 2048;
        passed(MAILBOX) && passed(READ)
    });
    log.start().unwrap();
    throttle
        .limit_dirtying(NonZeroU64::new(8 << 20).unwrap())
        .unwrap();
    let held = || {
        watch
            .times()
            .iter()
            .map(|it| it.throttled)
            .collect::<Vec<_>>()
    };
    subject.wait("the writer to be held", |subject| {
        // Harvests protect its pages again. Too many would make the reader's counter look like much.
        thread::sleep(Duration::from_millis(50));
        let bitmap = MigrationBitmap::new(subject.machine.ram().bitmap_pages());
        log.harvest(&bitmap).unwrap();
        held()[0] > Duration::from_millis(500)
    });
    assert_eq!(held()[1], Duration::ZERO, "the reader loses no time");
    let goes_on = |subject: &mut crate::guests::Subject, counter| {
        let before = subject.word(counter);
        subject.wait("a vCPU to go on", |subject| subject.word(counter) > before);
    };
    goes_on(&mut subject, MAILBOX);
    goes_on(&mut subject, READ);
    throttle.set(0).unwrap();
    goes_on(&mut subject, MAILBOX);
    let before = held();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(held(), before, "nobody is held afterwards");
    subject.machine.stop_vcpus().unwrap();
}

#[test]
fn a_machine_whose_log_is_a_bitmap_says_that_it_cannot_limit_single_vcpus() {
    if !have_kvm() {
        return;
    }
    let subject = program(16 << 20, &counter());
    let limit = NonZeroU64::new(1).unwrap();
    let error = subject
        .machine
        .throttle()
        .limit_dirtying(limit)
        .unwrap_err();
    assert!(error.to_string().contains("--dirty-log ring"), "{error}");
}
