// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A local hand-over: the destination gets the memory itself, and only the owner of the guest changes it.
#![allow(clippy::unwrap_used)]

mod lendable;
#[path = "../software_guest/mod.rs"]
mod software_guest;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use host_migrator::{
    Address, Connection, DestinationMachine, GuestMemory, GuestRam, Incoming, Listener,
    MachineError, MachineState, Migration, MigrationError, MigrationParams, Owner, OwnershipRecord,
    PageRange, RamRegion, receive,
};
use software_guest::local::{Ended, Script, Step, as_it_should_be, hand_over, ordered, picture};
use software_guest::memory::Memory;
use software_guest::workload::{Behaviour, Workload};
use software_guest::{Guest, migrate};
use spec::trace::Event;

/// A guest that has used some of its memory. Every other page is a hole.
fn guest() -> Guest {
    let guest = Guest::new(Memory::new(256, 64));
    for pfn in guest.memory.pages().step_by(2) {
        guest.write(pfn);
    }
    guest
}

fn params() -> MigrationParams {
    MigrationParams::default().with_peer_timeout(Duration::from_secs(10))
}

fn is_running(guest: &Guest) -> bool {
    !guest.machine.is_stopped() && !guest.machine.is_handed_over()
}

/// The guest as it arrived, with its memory.
fn arrived(guest: &Guest, ended: &Ended) -> Guest {
    assert_eq!(guest.memory.wrong_pages(ended.memory(), None), []);
    Guest::new(guest.memory.moved_to(Arc::clone(ended.memory())))
}

/// The guest runs here, and leaves as it should: with its memory, and then in pages.
fn goes_on(guest: &Guest) {
    assert!(is_running(guest));
    guest.write(3);
    let ended = hand_over(guest, params(), &as_it_should_be());
    ended.sent.as_ref().unwrap();
    let there = arrived(guest, &ended);
    there.write(5);
    let outcome = migrate(there.source(), params());
    outcome.report();
    assert_eq!(outcome.wrong_pages(&there.memory), []);
}

#[test]
fn a_guest_goes_with_its_memory_files_and_nothing_in_them_changes() {
    let guest = guest();
    let before = picture(&guest.memory.ram);
    let ended = hand_over(&guest, params(), &as_it_should_be());
    let report = ended.sent.as_ref().unwrap();
    let received = ended.received.as_ref().unwrap().received;
    assert_eq!(ended.owners(&guest), (Owner::There, Owner::Here));
    assert!(ended.destination.runs && guest.machine.is_handed_over());
    assert_eq!(picture(ended.memory()), before);
    let files = GuestMemory::files(&guest.memory.ram).unwrap().unwrap();
    let number = |region: RamRegion| {
        let file = region.file.metadata().unwrap();
        (file.dev(), file.ino())
    };
    let files: Vec<_> = files.into_iter().map(number).collect();
    assert_eq!(ended.destination.files, files);
    let bytes = guest.memory.ram.pages() * 4096;
    let lent = report.lent.unwrap();
    assert_eq!(
        (lent.files, lent.bytes, received.lent_bytes),
        (2, bytes, bytes)
    );
    assert_eq!((received.pages, received.pages_zero), (0, 0));
    assert_eq!(
        received.bytes,
        report.wire_bytes - 40,
        "all but the hand-over"
    );
    assert!(report.wire_bytes < 4096, "{} bytes", report.wire_bytes);
}

#[test]
fn nothing_is_logged_and_the_guest_is_asked_for_nothing() {
    let guest = guest();
    hand_over(&guest, params(), &as_it_should_be())
        .sent
        .unwrap();
    let (records, _) = guest.trace.records();
    let events: Vec<_> = records
        .into_iter()
        .flatten()
        .map(|record| record.event)
        .collect();
    assert!(events.contains(&Event::Lent));
    let asks = |event: &Event| matches!(event, Event::LogStarted(_) | Event::Open(_) | Event::Done);
    assert!(!events.iter().any(asks), "{events:?}");
}

#[test]
fn a_guest_that_writes_until_it_is_stopped_loses_no_write() {
    let guest = Arc::new(guest());
    let behaviour = Behaviour {
        seed: 5,
        hints: false,
        pause: 0,
        first_page: 0,
    };
    let workload = Workload::start(&guest, behaviour);
    let steps = workload.steps();
    let script: Script = Arc::new(|_, _| {
        // The guest writes through all of it.
        thread::sleep(Duration::from_millis(2));
        Ok(())
    });
    let ended = hand_over(&guest, params(), &script);
    ended.sent.as_ref().unwrap();
    assert!(workload.steps() > steps);
    workload.stop();
    assert_eq!(guest.memory.wrong_pages(ended.memory(), None), []);
}

#[test]
fn memory_goes_from_host_to_host_and_then_in_pages() {
    let first = guest();
    let second = arrived(&first, &hand_over(&first, params(), &as_it_should_be()));
    second.write(7);
    let third = arrived(&second, &hand_over(&second, params(), &as_it_should_be()));
    third.write(9);
    let outcome = migrate(third.source(), params());
    outcome.report();
    assert_eq!(outcome.wrong_pages(&third.memory), []);
}

/// Checks that the two sides agree as far as they can, and that memory is as the guest left it. Where an operator must decide,
/// one does, for the side that may run the guest.
fn assert_safe(guest: &Guest, ended: &Ended, before: &(u32, Vec<PageRange>), what: &str) {
    assert_eq!(picture(&guest.memory.ram), *before, "{what}");
    let destination = &ended.destination;
    match ended.owners(guest) {
        (Owner::Here, Owner::There) => {
            assert!(destination.memory.is_none() && !destination.runs, "{what}");
            goes_on(guest);
        }
        (Owner::Here, Owner::Undecided) => {
            assert!(destination.loaded && !destination.runs, "{what}");
            assert_eq!(picture(ended.memory()), *before, "{what}");
            goes_on(guest);
        }
        (Owner::Undecided, Owner::Undecided) => {
            assert!(destination.loaded && !destination.runs, "{what}");
            assert!(guest.machine.is_handed_over(), "{what}");
            assert_eq!(picture(ended.memory()), *before, "{what}");
            // An operator ends the destination and decides for the source.
            guest.ownership.claim(&guest.trace).unwrap();
            guest.machine.take_back();
            goes_on(guest);
        }
        (Owner::Undecided | Owner::There, Owner::Here) => {
            assert!(guest.machine.is_handed_over(), "{what}");
            goes_on(&arrived(guest, ended));
        }
        owners => panic!("{what}: {owners:?}"),
    }
}

/// Each step fails in the way of `fails`.
fn at_each_step(
    fails: fn(&software_guest::local::Stage) -> Result<(), host_migrator::MachineError>,
) {
    for failing in Step::ALL {
        let guest = guest();
        let before = picture(&guest.memory.ram);
        let script: Script = Arc::new(move |step, stage| match step == failing {
            true => fails(stage),
            false => Ok(()),
        });
        let ended = hand_over(&guest, params(), &script);
        if !matches!(failing, Step::Ready | Step::HandOver | Step::Run) {
            assert!(
                ended.sent.is_err() && ended.received.is_err(),
                "{failing:?}"
            );
        }
        assert_safe(&guest, &ended, &before, &format!("{failing:?}"));
    }
}

#[test]
fn a_step_that_fails_leaves_memory_as_it_was_and_the_guest_goes_on() {
    at_each_step(|_| ordered());
}

#[test]
fn a_link_that_dies_at_any_step_leaves_memory_as_it_was_and_the_guest_with_one_side() {
    at_each_step(|stage| {
        stage.cut();
        Ok(())
    });
}

#[test]
fn a_step_that_panics_leaves_memory_as_it_was_and_the_guest_goes_on() {
    for failing in [Step::TakeMemory, Step::StopVcpus, Step::Save, Step::Load] {
        let guest = guest();
        let before = picture(&guest.memory.ram);
        let script: Script = Arc::new(move |step, _| {
            assert!(step != failing, "the test has ordered this panic");
            Ok(())
        });
        let ended = hand_over(&guest, params(), &script);
        assert!(
            ended.sent.is_err() && ended.received.is_err(),
            "{failing:?}"
        );
        assert_safe(&guest, &ended, &before, &format!("{failing:?}"));
    }
}

#[test]
fn a_cancel_at_any_step_before_the_hand_over_ends_it() {
    let before_it = |step: &Step| !matches!(step, Step::HandOver | Step::Run);
    for cancelled in Step::ALL.into_iter().filter(before_it) {
        let guest = guest();
        let before = picture(&guest.memory.ram);
        let script: Script = Arc::new(move |step, stage| {
            if step == cancelled {
                stage.monitor.cancel();
            }
            Ok(())
        });
        let ended = hand_over(&guest, params(), &script);
        // At `Ready` the source may have handed over already.
        if cancelled != Step::Ready {
            assert!(
                matches!(ended.sent, Err(MigrationError::Cancelled)),
                "{cancelled:?}: {:?}",
                ended.sent
            );
        }
        assert_safe(&guest, &ended, &before, &format!("{cancelled:?}"));
    }
}

#[test]
fn a_destination_that_takes_for_ever_to_load_is_given_up() {
    let guest = guest();
    let before = picture(&guest.memory.ram);
    let script: Script = Arc::new(|step, stage| {
        if step == Step::Load {
            // Until the source has ended it.
            while !stage.monitor.status().status.is_over() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    });
    let params = params().with_switchover_timeout(Duration::from_millis(300));
    let ended = hand_over(&guest, params, &script);
    let error = ended.sent.as_ref().unwrap_err().to_string();
    assert!(error.contains("the switchover was not done"), "{error}");
    assert_safe(&guest, &ended, &before, "load");
}

#[test]
fn a_destination_that_got_no_guest_does_not_take_lent_memory_for_its_own() {
    let guest = guest();
    let before = picture(&guest.memory.ram);
    let script: Script = Arc::new(|step, _| match step {
        Step::Load => ordered(),
        _ => Ok(()),
    });
    let ended = hand_over(&guest, params(), &script);
    assert!(ended.destination.gave_back);
    // The next migration clears the destination's memory.
    let outcome = migrate(guest.source(), params());
    outcome.report();
    assert_eq!(picture(&guest.memory.ram).0, before.0);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
}

#[test]
fn a_machine_that_cannot_take_memory_says_so_and_the_guest_runs_on() {
    let guest = guest();
    let before = picture(&guest.memory.ram);
    let outcome = migrate(guest.source(), params().with_local(true));
    for error in [
        outcome.sent.unwrap_err().to_string(),
        outcome.received.unwrap_err().to_string(),
    ] {
        assert!(error.contains("memory of its own"), "{error}");
    }
    assert_eq!(picture(&guest.memory.ram), before);
    goes_on(&guest);
}

#[test]
fn a_destination_without_memory_of_its_own_takes_lent_memory_and_no_pages() {
    let guest = guest();
    let layout = guest.memory.ram.layout().clone();
    for local in [false, true] {
        let (here, there) = UnixStream::pair().unwrap();
        let layout = layout.clone();
        let destination = thread::spawn(move || {
            let (mut machine, ownership) = (Unmade::default(), OwnershipRecord::there());
            let there = Connection::try_from(there).unwrap();
            let received = receive(there, &layout, &mut machine, &ownership, &mut |_| ());
            (received, machine)
        });
        let connection = Connection::try_from(here).unwrap();
        let migration = Migration::new(connection, params().with_local(local));
        let sent = migration.run(&mut guest.source());
        let (received, machine) = destination.join().unwrap();
        if local {
            sent.unwrap();
            received.unwrap();
            let memory = machine.0.unwrap();
            assert_eq!(guest.memory.wrong_pages(&memory, None), []);
        } else {
            let error = sent.unwrap_err().to_string();
            assert!(error.contains("must lend its memory"), "{error}");
            assert!(received.is_err() && is_running(&guest));
        }
    }
}

/// A machine that is made when its memory comes.
#[derive(Default)]
struct Unmade(Option<GuestRam>);

impl DestinationMachine for Unmade {
    fn judge(&mut self, _description: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        self.0 = Some(GuestRam::map(memory).unwrap());
        Ok(())
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        state.take("vcpus")?;
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        Ok(())
    }
}

/// A machine that is made when its memory comes. Meanwhile something else happens.
struct Meanwhile<F> {
    machine: Unmade,
    happens: Option<F>,
}

impl<F: FnOnce() + Send> DestinationMachine for Meanwhile<F> {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        self.machine.judge(description)
    }

    fn check(&mut self) -> Result<(), MachineError> {
        self.machine.check()
    }

    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        self.happens.take().unwrap()();
        self.machine.take_memory(memory)
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        self.machine.load(state)
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.machine.run()
    }
}

#[test]
fn a_second_source_that_comes_during_a_local_hand_over_keeps_its_guest_and_disturbs_nothing() {
    for local in [true, false] {
        let (first, second) = (guest(), guest());
        let before = picture(&second.memory.ram);
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&Address::Unix(folder.path().join("socket"))).unwrap();
        let address = listener.address().clone();
        let connect = || Connection::connect(&address, Duration::from_secs(30)).unwrap();
        let layout = first.memory.ram.layout().clone();
        let (connect, second) = (&connect, &second);
        let (received, machine, refused) = thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let comes = move || {
                let migration = Migration::new(connect(), params().with_local(local));
                let mut source = second.source();
                let migrating = scope.spawn(move || migration.run(&mut source));
                tell.send(migrating).unwrap();
            };
            let mut machine = Meanwhile {
                machine: Unmade::default(),
                happens: Some(comes),
            };
            let destination = scope.spawn(move || {
                let ownership = OwnershipRecord::there();
                let source = Incoming::wait(&listener, &layout, &mut machine).unwrap();
                let received = source.receive(&layout, &mut machine, &ownership, &mut |_| ());
                (received, machine.machine)
            });
            let migration = Migration::new(connect(), params().with_local(true));
            migration.run(&mut first.source()).unwrap();
            let (received, machine) = destination.join().unwrap();
            (received, machine, told.recv().unwrap().join().unwrap())
        });
        received.unwrap();
        let memory = machine.0.unwrap();
        assert_eq!(first.memory.wrong_pages(&memory, None), []);
        refused.unwrap_err();
        assert_eq!(picture(&second.memory.ram), before);
        goes_on(second);
    }
}
