// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A waiting machine takes the source's memory instead of its own.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use host_migrator::{
    Connection, DestinationMachine, Migration, MigrationParams, OwnershipRecord, RamRegion, Source,
    SourceMachine, receive,
};

use crate::guests::{MAILBOX, Subject, config, have_kvm, incoming, stopped_counter};

/// Device and number of the files that hold the machine's memory.
fn files(subject: &Subject) -> Vec<(u64, u64)> {
    let number = |region: RamRegion| {
        let file = region.file.metadata().unwrap();
        (file.dev(), file.ino())
    };
    let files = subject.machine.memory_files().unwrap();
    files.into_iter().map(number).collect()
}

/// Migrates the guest of `source` to `destination`.
fn migrate(source: &mut Subject, destination: &mut Subject, params: MigrationParams) {
    let (here, there) = UnixStream::pair().unwrap();
    let [here, there] = [here, there].map(|end| Connection::try_from(end).unwrap());
    thread::scope(|scope| {
        let far = scope.spawn(|| {
            let own = Arc::clone(destination.machine.ram());
            let ownership = OwnershipRecord::there();
            receive(
                there,
                &own,
                &mut destination.machine,
                &ownership,
                &mut |_| (),
            )
        });
        let (ram, logs) = (
            Arc::clone(source.machine.ram()),
            source.machine.dirty_logs(),
        );
        let mut source = Source::new(Box::new(&mut source.machine), ram).logs(logs);
        Migration::new(here, params).run(&mut source).unwrap();
        far.join().unwrap().unwrap();
    });
}

fn goes_on(subject: &mut Subject, from: u64) {
    subject.wait("the guest to go on", |subject| subject.word(MAILBOX) > from);
}

#[test]
fn a_guest_counts_on_in_the_memory_that_it_came_with() {
    if !have_kvm() {
        return;
    }
    let mut source = stopped_counter();
    source.machine.start().unwrap();
    let mut destination = incoming(&config(16 << 20, 1));
    assert_ne!(files(&source), files(&destination));
    let local = MigrationParams::default().with_local(true);
    migrate(&mut source, &mut destination, local);
    assert_eq!(files(&source), files(&destination));
    let count = destination.word(MAILBOX);
    goes_on(&mut destination, count);
    // The source never runs it again, and goes away with its mapping.
    assert!(source.machine.start().is_err());
    drop(source);
    let count = destination.word(MAILBOX);
    goes_on(&mut destination, count);
    // From here it goes in pages.
    let mut last = incoming(&config(16 << 20, 1));
    migrate(&mut destination, &mut last, MigrationParams::default());
    let count = last.word(MAILBOX);
    goes_on(&mut last, count);
}

#[test]
fn a_machine_that_gives_memory_back_has_its_own_again_and_takes_another_guest() {
    if !have_kvm() {
        return;
    }
    let mut source = stopped_counter();
    let count = source.word(MAILBOX);
    let mut destination = incoming(&config(16 << 20, 1));
    let lent = source.machine.memory_files().unwrap();
    destination.machine.take_memory(lent).unwrap();
    assert_eq!(files(&source), files(&destination));
    assert_eq!(destination.word(MAILBOX), count);
    destination.machine.give_memory_back();
    assert_ne!(files(&source), files(&destination));
    // The next migration clears the destination's memory, and not the source's.
    source.machine.resume().unwrap();
    goes_on(&mut source, count);
    migrate(&mut source, &mut destination, MigrationParams::default());
    let arrived = destination.word(MAILBOX);
    assert!(arrived > count);
    goes_on(&mut destination, arrived);
    assert!(source.word(MAILBOX) > count, "its memory is still there");
}

#[test]
fn a_machine_whose_loaded_guest_stays_at_the_source_never_runs_it() {
    if !have_kvm() {
        return;
    }
    let mut source = stopped_counter();
    let mut destination = incoming(&config(16 << 20, 1));
    let lent = source.machine.memory_files().unwrap();
    destination.machine.take_memory(lent).unwrap();
    let mut state = source.machine.save().unwrap();
    destination.machine.load(&mut state).unwrap();
    destination.machine.give_memory_back();
    let error = destination.machine.start().unwrap_err().to_string();
    assert!(error.contains("stays at the source"), "{error}");
    let count = source.word(MAILBOX);
    source.machine.resume().unwrap();
    goes_on(&mut source, count);
}

#[test]
fn a_machine_that_has_a_guest_takes_no_memory() {
    if !have_kvm() {
        return;
    }
    let mut source = stopped_counter();
    let lent = incoming(&config(16 << 20, 1)).machine.memory_files();
    let error = source.machine.take_memory(lent.unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("a guest here already"),
        "{error}"
    );
    let count = source.word(MAILBOX);
    source.machine.resume().unwrap();
    goes_on(&mut source, count);
}
