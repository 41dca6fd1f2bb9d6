// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every interleaving of claim, harvest, hint and close, over the real migration bitmap, hint map and epochs.
//!
//! The guest has one page. It hints the page and reuses it at once by writing it. Whatever the order
//! of the steps of guest, device and migrator, the destination has the last write.

use std::collections::BTreeSet;

use loom::model::Builder;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use spec::PageRange;
use spec::control::EpochReport;
use spec::hint_map::{HintBits, HintMap, HintPhase, Tellers, Words};

use super::{Flush, Pass, Tracker};
use crate::memory::bitmap::MigrationBitmap;
use crate::report::trace::Trace;
use crate::rule::clause::{Clause, Clauses};
use crate::vm::dirty_log::{DirtyLog, DirtyLogError, LogSource};
use crate::vm::hint_source::{HintError, HintSource};

/// One word of the bitmaps; the guest uses its first page.
const PAGES: u64 = 64;
const PAGE: u64 = 1;
/// How often loom may preempt a thread.
const PREEMPTIONS: usize = 3;

/// A hint map without the 500 unused words of its header.
struct FewWords([AtomicU64; 13]);

impl Words for FewWords {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        match index {
            0..=8 => self.0.get(index),
            512..=515 => self.0.get(index - 512 + 9),
            _ => None,
        }
    }
}

/// The device. It does everything under its lock.
struct Device {
    epoch: Mutex<u64>,
    map: HintMap<FewWords>,
}

impl Device {
    fn new() -> Self {
        let words = FewWords(std::array::from_fn(|_| AtomicU64::new(0)));
        Self {
            epoch: Mutex::new(0),
            map: HintMap::format(words, PAGES).unwrap(),
        }
    }

    /// The guest hints its page; dropped if no epoch is open.
    fn hint(&self) {
        let epoch = self.epoch.lock().unwrap();
        if *epoch != 0 {
            self.map.insert(PageRange::new(0, 1).unwrap());
        }
    }
}

struct Hints(Arc<Device>);

impl HintSource for Hints {
    fn prepare(&mut self, _pages: u64, _tellers: Tellers) -> Result<(), HintError> {
        Ok(())
    }

    fn open(&mut self, epoch: u64) -> Result<(), HintError> {
        *self.0.epoch.lock().unwrap() = epoch;
        Ok(())
    }

    fn load(&self, index: usize) -> HintBits {
        self.0.map.load(index)
    }

    fn phase(&self) -> HintPhase {
        HintPhase::Running
    }

    fn hinted_pages(&self) -> u64 {
        0
    }

    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError> {
        *self.0.epoch.lock().unwrap() = 0;
        Ok(EpochReport {
            epoch,
            ..EpochReport::default()
        })
    }

    fn take_all(&mut self, told: &mut dyn FnMut(usize, HintBits)) {
        self.0.map.take_all(told);
    }

    fn done(&mut self) -> Result<(), HintError> {
        Ok(())
    }
}

/// The content of the guest's page, and the log of its writes.
struct Memory {
    page: AtomicU64,
    dirty: AtomicU64,
}

impl Memory {
    fn write(&self, value: u64) {
        self.page.store(value, Ordering::Release);
        self.dirty.fetch_or(PAGE, Ordering::AcqRel);
    }
}

struct Log(Arc<Memory>);

impl DirtyLog for Log {
    fn source(&self) -> LogSource {
        LogSource::Kvm
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        // A plain store would not do: who clears a bit must see the write that set it, or the first copy of
        // the page may be older than the write.
        self.0.dirty.swap(0, Ordering::AcqRel);
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        let bits = self.0.dirty.swap(0, Ordering::AcqRel);
        Ok(bitmap.merge(0, bits))
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

/// The sender: claims pages, skips hinted ones and copies the rest.
fn send(pass: &Pass<'_>, memory: &Memory, destination: &mut u64) {
    let claimed = pass.claim(0, u64::MAX);
    if claimed.hinted.pages() & PAGE != 0 {
        *destination = 0;
    } else if claimed.rest & PAGE != 0 {
        *destination = memory.page.load(Ordering::Acquire);
    }
    pass.copied(0, &claimed, 0);
}

/// A sender that sends at once.
struct NothingGathered;

impl Flush for NothingGathered {
    type Error = DirtyLogError;

    fn flush(&mut self, _pass: &Pass<'_>) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

/// Migrates in two rounds and the last, while the guest hints its page and writes it. The second epoch is opened by
/// a harvest in the middle of a round.
fn migrate(switched_off: &BTreeSet<Clause>) {
    let memory = Arc::new(Memory {
        page: AtomicU64::new(1),
        dirty: AtomicU64::new(0),
    });
    let device = Arc::new(Device::new());
    let guest = {
        let (memory, device) = (Arc::clone(&memory), Arc::clone(&device));
        thread::spawn(move || {
            device.hint();
            memory.write(2);
        })
    };
    let mut logs: Vec<Box<dyn DirtyLog>> = vec![Box::new(Log(Arc::clone(&memory)))];
    let mut hints = Hints(device);
    let trace = Trace::default();
    let clauses = Clauses::without(switched_off);
    let hints: &mut dyn HintSource = &mut hints;
    let pages = [PageRange::new(0, PAGES).unwrap()];
    let mut tracker = Tracker::arm_with(
        &pages,
        &mut logs,
        Some(hints),
        Tellers::ALL,
        clauses,
        &trace,
    )
    .unwrap();
    let mut destination = 0;
    // Without early harvests, which this model does not cover.
    let epoch = tracker.open();
    send(&epoch.pass(), &memory, &mut destination);
    let (epoch, _) = epoch.sync(&mut NothingGathered).unwrap();
    send(&epoch.pass(), &memory, &mut destination);
    epoch.end(&mut NothingGathered).unwrap();
    tracker.before_pause();
    guest.join().unwrap();
    tracker.last_harvest().unwrap();
    send(&tracker.rest(), &memory, &mut destination);
    assert_eq!(destination, 2, "the guest's last write is lost");
}

fn every_interleaving(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

fn every_migration(switched_off: impl IntoIterator<Item = Clause>) {
    let switched_off = switched_off.into_iter().collect();
    every_interleaving(move || migrate(&switched_off));
}

#[test]
fn loom_a_page_that_is_hinted_and_written_at_once_arrives() {
    every_migration([]);
}

#[test]
#[should_panic(expected = "the guest's last write is lost")]
fn loom_a_stale_hint_loses_the_write() {
    every_migration([Clause::ForgetOldHints]);
}

#[test]
#[should_panic(expected = "the guest's last write is lost")]
fn loom_a_harvest_with_the_epoch_open_loses_the_write() {
    every_migration([Clause::CloseBeforeHarvest]);
}

#[test]
fn loom_a_bit_that_is_merged_during_a_walk_is_claimed_or_found_by_the_next() {
    every_interleaving(|| {
        let bitmap = Arc::new(MigrationBitmap::new(PAGES * 65));
        bitmap.merge(0, 0b01);
        let merging = {
            let bitmap = Arc::clone(&bitmap);
            thread::spawn(move || {
                bitmap.merge(0, 0b10);
                bitmap.merge(64, 0b01);
            })
        };
        let walk = |bitmap: &MigrationBitmap| -> (u64, u64) {
            bitmap.occupied().fold((0, 0), |(low, high), index| {
                let bits = bitmap.claim(index);
                if index == 0 {
                    (low | bits, high)
                } else {
                    (low, high | bits)
                }
            })
        };
        let first = walk(&bitmap);
        merging.join().unwrap();
        let second = walk(&bitmap);
        assert_eq!((first.0 & second.0, first.1 & second.1), (0, 0));
        assert_eq!((first.0 | second.0, first.1 | second.1), (0b11, 0b01));
    });
}

#[test]
fn loom_a_claim_a_hint_and_a_harvest_at_once_share_a_word_exactly() {
    every_interleaving(|| {
        let bitmap = Arc::new(MigrationBitmap::new(PAGES));
        bitmap.merge(0, 0b0111);
        let hinting = {
            let bitmap = Arc::clone(&bitmap);
            thread::spawn(move || bitmap.clear(0, 0b0011))
        };
        let harvesting = {
            let bitmap = Arc::clone(&bitmap);
            thread::spawn(move || bitmap.merge(0, 0b1000))
        };
        let claimed = bitmap.claim(0);
        let cleared = hinting.join().unwrap();
        assert_eq!(harvesting.join().unwrap(), 1);
        let left = bitmap.load(0);
        assert_eq!(
            claimed & cleared,
            0,
            "a page is claimed or hinted, not both"
        );
        assert_eq!((claimed | cleared) & left, 0);
        assert_eq!(claimed | cleared | left, 0b1111);
    });
}

#[test]
fn loom_what_the_guest_did_before_a_hint_is_seen_with_it() {
    every_interleaving(|| {
        let device = Arc::new(Device::new());
        device.map.begin(1, HintPhase::Running);
        let before = Arc::new(AtomicU64::new(0));
        let guest = {
            let (device, before) = (Arc::clone(&device), Arc::clone(&before));
            thread::spawn(move || {
                before.store(1, Ordering::Relaxed);
                device.map.insert(PageRange::new(3, 2).unwrap())
            })
        };
        if device.map.load(0).pages() != 0 {
            assert_eq!(before.load(Ordering::Relaxed), 1);
        }
        // A word is cleared only while no hint can come, so it has one writer at a time.
        assert_eq!(guest.join().unwrap(), 2);
        assert_eq!(device.map.take(0).pages(), 0b11000);
        assert_eq!(device.map.hinted_pages(), 2);
    });
}
