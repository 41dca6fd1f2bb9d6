// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that is paused and resumed many times loses nothing and does nothing twice.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use host_migrator::{DirtyLog, LogSource, MigrationBitmap, SourceMachine};
use spec::PAGE_SIZE;

use crate::guests::{
    COUNTED, COUNTED_PAGES, MAILBOX, Subject, counter, have_kvm, program, program_with_console,
};

/// The time limit for what must happen.
const FOR_EVER: Duration = Duration::from_secs(60);

fn counted(subject: &Subject) -> Vec<u64> {
    let pages = (COUNTED..)
        .step_by(PAGE_SIZE as usize)
        .take(COUNTED_PAGES as usize);
    pages.map(|gpa| subject.word(gpa)).collect()
}

#[test]
fn a_thousand_pauses_lose_no_write_and_no_output() {
    if !have_kvm() {
        return;
    }
    let mut subject = program(16 << 20, &counter());
    let mut logs = subject.machine.dirty_logs();
    let log: &mut dyn DirtyLog = &mut **logs
        .iter_mut()
        .find(|log| log.source() == LogSource::Kvm)
        .unwrap();
    log.start().unwrap();
    let mut shadow = counted(&subject);
    for round in 0..1000 {
        subject.machine.start().unwrap();
        if round % 10 == 0 {
            // Long enough for the vCPU to be in the guest. Otherwise the pause comes before or during its entry.
            std::thread::sleep(Duration::from_millis(1));
        }
        subject.machine.stop_vcpus().unwrap();
        let now = counted(&subject);
        let count = subject.word(MAILBOX);
        let bitmap = MigrationBitmap::new(subject.machine.ram().bitmap_pages());
        log.harvest(&bitmap).unwrap();
        for (page, (old, new)) in shadow.iter().zip(&now).enumerate() {
            let logged = bitmap.contains(COUNTED / PAGE_SIZE + page as u64);
            assert!(
                old == new || logged,
                "round {round}: page {page} changed and is not in the log"
            );
        }
        assert_eq!(
            subject.word(MAILBOX),
            count,
            "a paused guest does not count"
        );
        shadow = now;
    }
    subject.machine.bus().console().drain(FOR_EVER);
    let said: Vec<u8> = subject.console.try_iter().collect();
    assert!(
        said.len() > 1000,
        "the guest counted only {} numbers",
        said.len()
    );
    for (index, byte) in said.iter().enumerate() {
        assert_eq!(*byte, (index + 1) as u8, "output {index}");
    }
    let written = subject.word(MAILBOX) - said.len() as u64;
    assert!(
        written <= 1,
        "{written} numbers were counted and not printed"
    );
}

#[test]
fn a_sleeping_vcpu_is_woken_to_be_paused() {
    if !have_kvm() {
        return;
    }
    let forever = [
        &[0xb8, 0xff, 0xff, 0xff, 0xff][..], // again: mov eax, 2^32 - 1
        &[0x66, 0xba, 0x10, 0x05],           // mov dx, PORT_SLEEP
        &[0xef],                             // out dx, eax
        &[0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00], // inc qword [MAILBOX]
        &[0xeb, 0xec],                       // jmp again
    ]
    .concat();
    let mut subject = program(16 << 20, &forever);
    for round in 1..=3 {
        subject.machine.start().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        subject.machine.stop_vcpus().unwrap();
        // The interrupted sleep counts as done: the guest goes on after it.
        assert_eq!(subject.word(MAILBOX), round - 1);
    }
}

#[test]
fn a_console_that_nobody_reads_does_not_hold_the_guest() {
    if !have_kvm() {
        return;
    }
    // A reader that has stopped: its socket takes no more bytes.
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    writer.set_nonblocking(false).unwrap();
    let mut subject = program_with_console(16 << 20, &counter(), Box::new(writer));
    subject.machine.start().unwrap();
    // The guest prints one byte for each number.
    subject.wait("the guest to go on", |subject| subject.word(MAILBOX) > 100);
    subject.machine.stop_vcpus().unwrap();
    drop(reader);
}
