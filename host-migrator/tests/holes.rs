// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with more holes than a search can find: each search has a limit, and a cancel ends it.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use host_migrator::{
    Connection, DirtyLog, DirtyLogError, GuestMemory, GuestRam, HoleBudget, Layout, LogSource,
    Migration, MigrationBitmap, MigrationError, OwnershipRecord, RamError, Source, receive,
};
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, like};
use software_guest::{Guest, migrate_over, rounds};
use spec::PageRange;

/// More holes than a search may look for.
const TOO_MANY: u64 = 1 << 23;
/// Holes between two questions whether to go on.
const ASK_EVERY: u64 = 1024;

/// Memory in which a search never comes to an end by itself.
struct Endless {
    ram: Arc<GuestRam>,
    /// Gets the limit of each search as it begins.
    searches: Mutex<Sender<u64>>,
    /// From this search on, only a cancel ends it.
    goes_on_from: usize,
    begun: Mutex<usize>,
}

impl GuestMemory for Endless {
    fn layout(&self) -> &Layout {
        self.ram.layout()
    }

    fn read(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError> {
        self.ram.read(range, out)
    }

    fn write(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        self.ram.write(range, content)
    }

    fn discard(&self, range: PageRange) -> Result<(), RamError> {
        self.ram.discard(range)
    }

    fn find_holes(
        &self,
        budget: &mut HoleBudget<'_>,
        _found: &mut dyn FnMut(PageRange),
    ) -> Result<bool, RamError> {
        assert!(budget.holes < TOO_MANY, "{budget:?}");
        self.searches.lock().unwrap().send(budget.holes).unwrap();
        let number = {
            let mut begun = self.begun.lock().unwrap();
            *begun += 1;
            *begun
        };
        if number >= self.goes_on_from {
            while (budget.go_on)() {
                thread::yield_now();
            }
            return Ok(false);
        }
        while budget.holes > 0 {
            budget.holes -= 1;
            if budget.holes.is_multiple_of(ASK_EVERY) && !(budget.go_on)() {
                break;
            }
        }
        Ok(false)
    }
}

/// A back end whose guest has it discard memory in every round, so that every round looks for holes.
struct Discards;

impl DirtyLog for Discards {
    fn source(&self) -> LogSource {
        LogSource::VhostUser
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        bitmap.insert(PageRange::new(0, 64).unwrap());
        Ok(64)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

/// A guest with such memory and such a back end. The receiver gets the limit of each search.
fn guest(goes_on_from: usize) -> (Guest, Source<'static>, Receiver<u64>) {
    let guest = Guest::new(Memory::new(200, 0));
    for pfn in [1, 2, 3, 100] {
        guest.write(pfn);
    }
    let (searches, limits) = channel();
    let mut source = guest.source();
    source.logs.push(Box::new(Discards));
    source.ram = Arc::new(Endless {
        ram: Arc::clone(&guest.memory.ram),
        searches: Mutex::new(searches),
        goes_on_from,
        begun: Mutex::default(),
    });
    (guest, source, limits)
}

#[test]
fn every_search_has_a_limit_and_the_migration_completes() {
    const ROUNDS: u32 = 3;
    let (guest, source, limits) = guest(usize::MAX);
    let (here, there) = UnixStream::pair().unwrap();
    let ram = Arc::new(like(&guest.memory.ram));
    let outcome = migrate_over(source, rounds(ROUNDS), here, there, ram);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    // At the start and in each round but the first.
    assert_eq!(limits.try_iter().count(), ROUNDS as usize);
}

#[test]
fn a_cancel_ends_a_search_at_the_start_and_in_a_later_round() {
    for search in [1, 2] {
        let (guest, source, limits) = guest(search);
        let (here, there) = UnixStream::pair().unwrap();
        let ram = like(&guest.memory.ram);
        let destination = thread::spawn(move || {
            let there = Connection::try_from(there).unwrap();
            let mut machine = SoftDestination::default();
            receive(
                there,
                &ram,
                &mut machine,
                &OwnershipRecord::there(),
                &mut |_| (),
            )
        });
        let here = Connection::try_from(here).unwrap();
        let handle = Migration::start(source, rounds(9), here).unwrap();
        for _ in 0..search {
            limits.recv().unwrap();
        }
        handle.monitor().cancel();
        let (_source, sent) = handle.join();
        assert!(matches!(sent, Err(MigrationError::Cancelled)), "{sent:?}");
        assert!(destination.join().unwrap().is_err());
        assert!(!guest.machine.is_stopped() && !guest.machine.is_handed_over());
    }
}
