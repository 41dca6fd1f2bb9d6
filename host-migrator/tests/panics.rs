// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Panics in the migration's thread: the guest runs on, as after any other error.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use host_migrator::{
    DirtyLog, DirtyLogError, LogSource, MachineError, MachineState, MigrationBitmap,
    MigrationError, MigrationParams, Owner, Source, SourceMachine,
};
use software_guest::memory::Memory;
use software_guest::{Guest, migrate, rounds};

/// Panics at its last allowed call.
#[derive(Clone)]
struct Fuse(Arc<AtomicU32>);

impl Fuse {
    fn of(calls: u32) -> Self {
        Self(Arc::new(AtomicU32::new(calls)))
    }

    fn burn(&self) {
        let left = self.0.fetch_sub(1, Ordering::AcqRel);
        assert!(left != 1, "the fuse has burnt down");
    }
}

struct PanickingLog(Box<dyn DirtyLog>, Fuse);

impl DirtyLog for PanickingLog {
    fn source(&self) -> LogSource {
        self.0.source()
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.1.burn();
        self.0.start()
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        self.1.burn();
        self.0.harvest(bitmap)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.0.stop()?;
        self.1.burn();
        Ok(())
    }
}

struct PanickingMachine(Box<dyn SourceMachine>, Fuse);

impl SourceMachine for PanickingMachine {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        self.0.describe()
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        self.0.stop_vcpus()?;
        self.1.burn();
        Ok(())
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        self.1.burn();
        self.0.stop_devices()
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        self.1.burn();
        self.0.save()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.0.resume()
    }

    fn hand_over(&mut self) {
        self.0.hand_over();
        self.1.burn();
    }
}

fn guest() -> Guest {
    let guest = Guest::new(Memory::new(70, 0));
    (0..64).for_each(|pfn| guest.write(pfn));
    guest
}

/// Checks that the migration of `source` panics and that everything it changed is undone.
fn assert_put_back(guest: &Guest, source: Source<'static>, what: &str) {
    let outcome = migrate(source, rounds(3));
    let error = outcome.sent.unwrap_err();
    assert!(
        matches!(&error, MigrationError::Panicked(why) if why == "the fuse has burnt down"),
        "{what}: {error}"
    );
    assert_eq!(guest.ownership.get().owner, Owner::Here, "{what}");
    assert!(!guest.machine.is_stopped(), "{what}");
    assert!(
        !guest.vcpu_log.is_running() && !guest.own_log.is_running(),
        "{what}"
    );
    assert_eq!(guest.hints.done.load(Ordering::Acquire), 1, "{what}");
    assert!(outcome.received.is_err(), "{what}");
    let again = migrate(guest.source(), MigrationParams::default());
    assert!(again.destination.runs, "{what}");
    assert_eq!(again.wrong_pages(&guest.memory), [], "{what}");
}

#[test]
fn a_panic_in_any_call_of_a_log_leaves_the_guest_running_and_nothing_behind() {
    for call in 1..=3 {
        let guest = guest();
        let mut source = guest.source();
        source.logs = vec![
            Box::new(PanickingLog(
                Box::new(guest.vcpu_log.clone()),
                Fuse::of(call),
            )),
            Box::new(guest.own_log.clone()),
        ];
        assert_put_back(&guest, source, &format!("call {call} of the log"));
    }
}

#[test]
fn a_guest_that_was_stopped_before_a_panic_runs_on() {
    for call in 1..=3 {
        let guest = guest();
        let mut source = guest.source();
        source.machine = Box::new(PanickingMachine(source.machine, Fuse::of(call)));
        assert_put_back(&guest, source, &format!("call {call} of the machine"));
    }
}

#[test]
fn a_panic_during_the_cleanup_does_not_stop_the_cleanup() {
    let guest = guest();
    let mut source = guest.source();
    // A log's calls are start, harvest, and the stop after the machine's panic, which comes first.
    let logs = [guest.vcpu_log.clone(), guest.own_log.clone()];
    let calls = Arc::new(AtomicU32::new(u32::MAX));
    source.logs = logs
        .into_iter()
        .map(|log| {
            Box::new(PanickingLog(Box::new(log), Fuse(Arc::clone(&calls)))) as Box<dyn DirtyLog>
        })
        .collect();
    struct Last(Box<dyn SourceMachine>, Arc<AtomicU32>);
    impl SourceMachine for Last {
        fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
            self.0.describe()
        }

        fn stop_vcpus(&mut self) -> Result<(), MachineError> {
            self.0.stop_vcpus()?;
            // The next call of a log is the first stop.
            self.1.store(1, Ordering::Release);
            panic!("the fuse has burnt down");
        }

        fn stop_devices(&mut self) -> Result<(), MachineError> {
            self.0.stop_devices()
        }

        fn save(&mut self) -> Result<MachineState, MachineError> {
            self.0.save()
        }

        fn resume(&mut self) -> Result<(), MachineError> {
            self.0.resume()
        }

        fn hand_over(&mut self) {
            self.0.hand_over();
        }
    }
    source.machine = Box::new(Last(source.machine, calls));
    // The record of a log whose stop panicked is missing from the trace, so the trace is not checked here.
    source.trace = host_migrator::Trace::default();
    assert_put_back(&guest, source, "the stop of a log");
}

#[test]
fn a_panic_after_the_hand_over_does_not_run_the_guest_here() {
    let guest = guest();
    let mut source = guest.source();
    source.machine = Box::new(PanickingMachine(source.machine, Fuse::of(4)));
    let handle = {
        let outcome = migrate(source, rounds(2));
        assert!(
            matches!(&outcome.sent, Err(MigrationError::HandedOverUnconfirmed(_))),
            "{:?}",
            outcome.sent
        );
        outcome
    };
    assert!(handle.destination.runs);
    assert!(guest.machine.is_stopped() && guest.machine.is_handed_over());
    assert_eq!(guest.ownership.get().owner, Owner::Undecided);
}
