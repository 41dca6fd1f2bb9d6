// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's dirty log is exact: a harvest holds what was written since the last one, and nothing else.

use std::collections::BTreeSet;

use host_migrator::{DirtyLog, LogSource, MigrationBitmap};
use spec::PAGE_SIZE;
use spec::bare::{HIGH_MEMORY_START, IMAGE_GPA, LOW_MEMORY_END};

use crate::guests::{MAILBOX, Subject, have_kvm, postman, program};

fn kvm_log(subject: &Subject) -> Box<dyn DirtyLog> {
    let mut logs = subject.machine.dirty_logs().into_iter();
    logs.find(|log| log.source() == LogSource::Kvm).unwrap()
}

/// The pages of a harvest, except the page tables below the image, in which the processor sets bits.
fn harvest(subject: &Subject, log: &mut dyn DirtyLog) -> BTreeSet<u64> {
    let bitmap = MigrationBitmap::new(subject.machine.ram().bitmap_pages());
    let taken = log.harvest(&bitmap).unwrap();
    let pages: BTreeSet<u64> = (0..bitmap.pages())
        .filter(|page| bitmap.contains(*page))
        .collect();
    assert_eq!(taken, pages.len() as u64);
    pages.range(IMAGE_GPA / PAGE_SIZE..).copied().collect()
}

/// These pages and the mailbox, which the guest also writes.
fn with_mailbox(pages: &[u64]) -> BTreeSet<u64> {
    pages.iter().copied().chain([MAILBOX / PAGE_SIZE]).collect()
}

#[test]
fn a_harvest_holds_exactly_the_pages_written_since_the_one_before() {
    if !have_kvm() {
        return;
    }
    // 100 pages more than a multiple of 64, so the last word of the log is half used.
    let mut subject = program((64 << 20) + 100 * PAGE_SIZE, &postman());
    let last = subject.machine.ram().bitmap_pages() - 1;
    subject.machine.start().unwrap();
    subject.post(&[0x500, 0x501]);
    let mut log = kvm_log(&subject);
    log.start().unwrap();
    assert_eq!(
        harvest(&subject, &mut *log),
        BTreeSet::new(),
        "armed pages start clean"
    );
    for pages in [
        &[0x500, 0x63f, 0x640, last][..],
        &[0x500],
        &[0x501, last - 99, last - 100],
        &[0x500, 0x501],
    ] {
        subject.post(pages);
        assert_eq!(harvest(&subject, &mut *log), with_mailbox(pages));
        assert_eq!(harvest(&subject, &mut *log), BTreeSet::new());
    }
    log.stop().unwrap();
    log.stop().unwrap();
}

#[test]
fn starting_a_log_again_forgets_what_was_written_before() {
    if !have_kvm() {
        return;
    }
    let mut subject = program(64 << 20, &postman());
    subject.machine.start().unwrap();
    let mut log = kvm_log(&subject);
    for _ in 0..3 {
        log.start().unwrap();
        subject.post(&[0x700]);
        log.start().unwrap();
        assert_eq!(harvest(&subject, &mut *log), BTreeSet::new());
        subject.post(&[0x700]);
        assert_eq!(harvest(&subject, &mut *log), with_mailbox(&[0x700]));
        log.stop().unwrap();
        subject.post(&[0x701]);
    }
}

#[test]
fn memory_above_the_gap_has_a_log_of_its_own() {
    if !have_kvm() {
        return;
    }
    let mut subject = program(LOW_MEMORY_END + 37 * PAGE_SIZE, &postman());
    let (low_last, high) = (
        LOW_MEMORY_END / PAGE_SIZE - 1,
        HIGH_MEMORY_START / PAGE_SIZE,
    );
    subject.machine.start().unwrap();
    subject.post(&[low_last]);
    let mut log = kvm_log(&subject);
    log.start().unwrap();
    let pages = [low_last, high, high + 36];
    subject.post(&pages);
    assert_eq!(harvest(&subject, &mut *log), with_mailbox(&pages));
    subject.post(&[high + 36]);
    assert_eq!(harvest(&subject, &mut *log), with_mailbox(&[high + 36]));
}
