// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's dirty logs, the bitmap and the rings, are exact: a harvest holds what was written since the last one, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use host_migrator::dirty_rate::log_meter::LogMeter;
use host_migrator::dirty_rate::measure;
use host_migrator::{DirtyLog, LogSource, MigrationBitmap, Trace};
use kvm_ioctls::{Cap, Kvm};
use reference_vmm::{BareWorkload, DirtyLogKind, Guest, MachineConfig};
use spec::PAGE_SIZE;
use spec::bare::{HIGH_MEMORY_START, IMAGE_GPA, LOW_MEMORY_END};
use spec::stamp::Random;
use spec::trace::Event;

use crate::guests::{MAILBOX, Subject, config, elf, guest_on, have_kvm, postman};

/// Rings that are full after a few hundred pages.
const SMALL: u32 = 1024;
const BOTH: [DirtyLogKind; 2] = [DirtyLogKind::Bitmap, DirtyLogKind::Ring(SMALL)];

/// A paused machine with one vCPU, which is the [`postman`]. None if this KVM has no such log.
fn logged(kind: DirtyLogKind, memory_bytes: u64) -> Option<Subject> {
    logged_on(config(memory_bytes, 1), kind)
}

/// The same, as `config` says otherwise.
fn logged_on(config: MachineConfig, kind: DirtyLogKind) -> Option<Subject> {
    let config = MachineConfig {
        dirty_log: kind,
        ..config
    };
    if kind != DirtyLogKind::Bitmap && !Kvm::new().unwrap().check_extension(Cap::DirtyLogRing) {
        spec_testing::skipped("this KVM has no dirty rings");
        return None;
    }
    let guest = Guest::BareImage(elf(&postman()), BareWorkload::default());
    Some(guest_on(&config, &guest))
}

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
    for kind in BOTH {
        // 100 pages more than a multiple of 64, so the last word of the log is half used.
        let Some(mut subject) = logged(kind, (64 << 20) + 100 * PAGE_SIZE) else {
            continue;
        };
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
}

#[test]
fn starting_a_log_again_forgets_what_was_written_before() {
    if !have_kvm() {
        return;
    }
    for kind in BOTH {
        let Some(mut subject) = logged(kind, 64 << 20) else {
            continue;
        };
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
}

#[test]
fn memory_above_the_gap_has_a_log_of_its_own() {
    if !have_kvm() {
        return;
    }
    for kind in BOTH {
        let Some(mut subject) = logged(kind, LOW_MEMORY_END + 37 * PAGE_SIZE) else {
            continue;
        };
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
}

#[test]
fn rings_and_bitmap_say_the_same_of_a_guest_that_writes_the_same() {
    if !have_kvm() {
        return;
    }
    let subjects = BOTH.map(|kind| logged(kind, 64 << 20));
    let [Some(by_bitmap), Some(by_ring)] = subjects else {
        return;
    };
    let mut both = [by_bitmap, by_ring].map(|mut subject| {
        subject.machine.start().unwrap();
        let mut log = kvm_log(&subject);
        log.start().unwrap();
        (subject, log)
    });
    let mut random = Random::new(7);
    for round in 0..200 {
        let count = random.below(200) + 1;
        let pages: Vec<u64> = (0..count).map(|_| 0x500 + random.below(2000)).collect();
        let seen = both.each_mut().map(|(subject, log)| {
            subject.post(&pages);
            match round % 3 {
                // Two posts between two harvests.
                0 => BTreeSet::new(),
                _ => harvest(subject, &mut **log),
            }
        });
        assert_eq!(seen[0], seen[1], "round {round}");
    }
}

#[test]
fn a_ring_that_is_full_is_emptied_and_no_page_is_lost() {
    if !have_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    Trace::create(&path, 4096).unwrap();
    let config = MachineConfig {
        trace: Trace::open(&path, 0).unwrap(),
        ..config(64 << 20, 1)
    };
    let Some(mut subject) = logged_on(config, DirtyLogKind::Ring(SMALL)) else {
        return;
    };
    subject.machine.start().unwrap();
    let mut log = kvm_log(&subject);
    log.start().unwrap();
    let mut written = with_mailbox(&[]);
    for first in (0x500..0x1500).step_by(0x100) {
        let pages: Vec<u64> = (first..first + 0x100).collect();
        subject.post(&pages);
        written.extend(pages);
    }
    let rings = subject.machine.dirty_rings().unwrap();
    assert!(rings.full() > 0, "4096 pages filled a ring of {SMALL}");
    assert!(rings.take()[0] >= 0x1000);
    let (records, _) = Trace::open(&path, 0).unwrap().records();
    let recorded: BTreeSet<u64> = (records.into_iter().flatten())
        .filter_map(|record| match record.event {
            Event::RingTaken(bits) => Some(bits),
            _ => None,
        })
        .flat_map(|bits| {
            (0..64)
                .filter(move |bit| bits.mask & 1 << bit != 0)
                .map(move |bit| bits.word * 64 + bit)
        })
        .collect();
    assert!(written.is_subset(&recorded), "{:x?}", &written - &recorded);
    // A vCPU that comes back into the guest may make more dirty: this KVM then writes to the page of its program.
    let seen = harvest(&subject, &mut *log);
    assert!(written.is_subset(&seen), "{:x?}", &written - &seen);
    assert!(seen.len() <= written.len() + 1, "{:x?}", &seen - &written);
    // A log that is off fills rings no more, and one that was full is no obstacle.
    log.stop().unwrap();
    subject.post(&(0x500..0x5ff).collect::<Vec<_>>());
}

#[test]
fn the_dirty_rate_is_exactly_that_of_a_guest_that_writes_known_pages() {
    if !have_kvm() {
        return;
    }
    for kind in BOTH {
        let Some(mut subject) = logged(kind, 64 << 20) else {
            continue;
        };
        let machine = &subject.machine;
        let (log, pages) = (machine.vcpu_dirty_log(), machine.ram().bitmap_pages());
        subject.machine.start().unwrap();
        // The processor sets bits in the guest's page tables at its first writes.
        subject.post(&[0x500, 0x600, 0x601]);
        let mut meter = LogMeter::start(log, pages).unwrap();
        let second = |subject: &mut Subject, number: u32| {
            let written = [&[0x500, 0x501][..], &[0x600, 0x601, 0x602]];
            subject.post(written[number as usize - 1]);
            Some(Duration::from_secs(number.into()))
        };
        let mut wait = |number| second(&mut subject, number);
        let rate = measure(&mut meter, 2, &mut wait).unwrap().unwrap();
        // The mailbox, too.
        let page = PAGE_SIZE as f64;
        let beside: Vec<f64> = rate
            .seconds
            .iter()
            .zip([3.0, 4.0])
            .map(|(seen, own)| seen / page - own)
            .collect();
        // Tables of pages that were not written before.
        assert!(
            beside.iter().all(|pages| (0.0..=2.0).contains(pages)),
            "{rate:?}"
        );
        let distinct = rate.distinct_bytes / PAGE_SIZE;
        assert!((6..=8).contains(&distinct), "{rate:?}");
    }
}
