// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table of guarded mappings. A signal handler reads it without a lock, and never reads a half-changed entry.
//!
//! Slots lie in segments, which are made when shares are taken and never freed. Whoever fills or frees a slot holds
//! [`Book`]'s lock. The handler takes no lock. Instead each slot has a version, which is odd while the slot changes.
//! The handler skips a slot whose version is odd or has changed while it was read. Such a slot cannot be the one that
//! it looks for: that one is filled before the first access to its mapping, and freed after the last.

#![allow(unsafe_code)]

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering, fence};

use parking_lot::Mutex;

/// Slots of a segment.
const SEGMENT: usize = 512;

/// A mapping and the eventfd of its owner, as one read of a slot finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guarded {
    /// The first address.
    pub start: usize,
    /// The address after the last.
    pub end: usize,
    /// The eventfd to write, if any.
    pub wake: Option<i32>,
}

/// All slots.
#[derive(Debug)]
pub(super) struct Table {
    first: Segment,
    book: Mutex<Book>,
}

/// For those who fill and free slots only.
#[derive(Debug)]
struct Book {
    /// How many slots there are.
    slots: usize,
    /// Slots that are promised to shares.
    promised: usize,
}

#[derive(Debug)]
struct Segment {
    slots: [Slot; SEGMENT],
    next: AtomicPtr<Self>,
}

/// A slot, free while its end is 0.
#[derive(Debug)]
pub(super) struct Slot {
    version: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    wake: AtomicI32,
    lost: AtomicBool,
}

impl Table {
    pub(super) const fn new() -> Self {
        Self {
            first: Segment::new(),
            book: Mutex::new(Book {
                slots: SEGMENT,
                promised: 0,
            }),
        }
    }

    /// Promises `slots` slots, and makes them if necessary.
    pub(super) fn promise(&'static self, slots: usize) {
        let mut book = self.book.lock();
        book.promised += slots;
        while book.slots < book.promised {
            let segment: &'static mut Segment = Box::leak(Box::new(Segment::new()));
            let last = self.segments().last().unwrap_or(&self.first);
            last.next.store(segment, Ordering::Release);
            book.slots += SEGMENT;
        }
    }

    /// Takes a promise back, after its slots were freed.
    pub(super) fn take_back(&self, slots: usize) {
        self.book.lock().promised -= slots;
    }

    /// Fills a free slot. There always is one if everybody uses at most what was promised.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] if there is none nevertheless.
    pub(super) fn fill(&'static self, guarded: Guarded) -> io::Result<&'static Slot> {
        let _book = self.book.lock();
        let free = self.slots().find(|slot| slot.is_free());
        let slot = free.ok_or(io::ErrorKind::OutOfMemory)?;
        slot.lost.store(false, Ordering::Relaxed);
        slot.change(guarded);
        Ok(slot)
    }

    /// Frees a slot that was filled.
    pub(super) fn free(&self, slot: &Slot) {
        let _book = self.book.lock();
        slot.change(Guarded {
            start: 0,
            end: 0,
            wake: None,
        });
    }

    /// The slot of the mapping that contains `address`. Takes no lock, because the signal handler calls this.
    pub(super) fn find(&'static self, address: usize) -> Option<(&'static Slot, Guarded)> {
        self.slots().find_map(|slot| {
            let guarded = slot.read()?;
            (guarded.start <= address && address < guarded.end).then_some((slot, guarded))
        })
    }

    fn slots(&'static self) -> impl Iterator<Item = &'static Slot> {
        self.segments().flat_map(|segment| &segment.slots)
    }

    fn segments(&'static self) -> impl Iterator<Item = &'static Segment> {
        std::iter::successors(Some(&self.first), |segment| segment.next())
    }
}

impl Segment {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; SEGMENT],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Self> {
        let next = self.next.load(Ordering::Acquire);
        // SAFETY: null, or a segment that `promise` has leaked and nobody changes but through atomics.
        unsafe { next.as_ref() }
    }
}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            wake: AtomicI32::new(-1),
            lost: AtomicBool::new(false),
        }
    }

    /// The mapping has been replaced.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Whether the mapping has been replaced.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// What the slot holds, or `None` if it is being changed.
    fn read(&self) -> Option<Guarded> {
        let before = self.version.load(Ordering::Acquire);
        let guarded = Guarded {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            wake: Some(self.wake.load(Ordering::Relaxed)).filter(|wake| *wake >= 0),
        };
        // Whoever sees a writer's value also sees that writer's odd version.
        fence(Ordering::Acquire);
        let after = self.version.load(Ordering::Relaxed);
        (before == after && before.is_multiple_of(2)).then_some(guarded)
    }

    /// Only one writer at a time may call this.
    fn change(&self, guarded: Guarded) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(guarded.start, Ordering::Relaxed);
        self.end.store(guarded.end, Ordering::Relaxed);
        self.wake
            .store(guarded.wake.unwrap_or(-1), Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    fn is_free(&self) -> bool {
        self.end.load(Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    fn mapping(start: usize, length: usize) -> Guarded {
        Guarded {
            start,
            end: start + length,
            wake: Some((start / 4096) as i32),
        }
    }

    /// One thread fills and frees a slot with two mappings of different addresses and lengths, while others read it.
    #[test]
    fn no_reader_ever_sees_parts_of_two_mappings() {
        static TABLE: Table = Table::new();
        TABLE.promise(1);
        let (stop, torn) = (AtomicBool::new(false), AtomicBool::new(false));
        let seen = AtomicU64::new(0);
        let small = mapping(1 << 30, 4096);
        let large = mapping(1 << 20, 1 << 31);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        // An address in both mappings.
                        if let Some((_, found)) = TABLE.find(small.start) {
                            torn.fetch_or(found != small && found != large, Ordering::Relaxed);
                            seen.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            // Until the readers have met both mappings, however late they start.
            let mut rounds = 0;
            while rounds < 200_000 || seen.load(Ordering::Relaxed) < 1000 {
                let guarded = if rounds % 2 == 0 { small } else { large };
                let slot = TABLE.fill(guarded).unwrap();
                TABLE.free(slot);
                rounds += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!torn.into_inner());
    }

    #[test]
    fn a_promise_makes_room_and_one_that_is_taken_back_leaves_it_to_the_next() {
        static TABLE: Table = Table::new();
        for _ in 0..3 {
            TABLE.promise(3 * SEGMENT);
            let slots: Vec<_> = (1..=3 * SEGMENT)
                .map(|page| TABLE.fill(mapping(page * 8192, 4096)).unwrap())
                .collect();
            assert!(
                TABLE.fill(mapping(4096, 4096)).is_err(),
                "no more than promised"
            );
            assert_eq!(
                TABLE.find(SEGMENT * 2 * 8192 + 4095).unwrap().1.end,
                SEGMENT * 2 * 8192 + 4096
            );
            assert!(TABLE.find(4096).is_none());
            slots.into_iter().for_each(|slot| TABLE.free(slot));
            TABLE.take_back(3 * SEGMENT);
        }
        assert_eq!(TABLE.slots().count(), 3 * SEGMENT);
    }
}
