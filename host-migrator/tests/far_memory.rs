// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of guest memory at a high address depends on its size, not on the address. This file has a single test,
//! because it measures the whole process.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;

use host_migrator::{GuestRam, MigrationParams, RamRegion};
use software_guest::memory::Memory;
use software_guest::{Guest, migrate};
use spec::{PAGE_SIZE, PageRange};

/// Pages of each region.
const PAGES: u64 = 4096;
/// The first page of the second region: at 64 TiB. A flat bitmap up to there would have 2 GiB.
const FAR: u64 = 64 << (40 - 12);
/// The most host memory that the whole migration may take: three times the guest's memory.
const MOST: u64 = 4 * 2 * PAGES * PAGE_SIZE;

#[test]
fn memory_at_64_tib_is_migrated_with_hints_in_little_memory() {
    let region = |first| RamRegion::new(first * PAGE_SIZE, PAGES * PAGE_SIZE).unwrap();
    let ram = GuestRam::map(vec![region(0), region(FAR)]).unwrap();
    let mut guest = Guest::new(Memory::of(Arc::new(ram)));
    // The trace's checker does not support such addresses.
    guest.trace = host_migrator::Trace::default();
    for pfn in (0..PAGES).chain(FAR..FAR + PAGES) {
        guest.write(pfn);
    }
    let free = PageRange::new(FAR + 1024, 1024).unwrap();
    (free.first()..free.end()).for_each(|pfn| guest.memory.free(pfn));
    let guest = Arc::new(guest);
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            theirs.hints.hint(free);
        }
        theirs.hints.finish();
    });
    let params = MigrationParams::default().with_map_rounds(true);
    let outcome = migrate(guest.source(), params);
    assert_eq!(outcome.report().totals.pages_hinted, free.count());
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    let maps = outcome.report().maps.as_ref().unwrap();
    assert_eq!(maps.rows[0].sum().skipped, free.count());
    let peak = peak_memory();
    assert!(peak < MOST, "{peak} bytes");
}

/// The most memory that this process has had from the host.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.unwrap().parse::<u64>().unwrap() * 1024
}
