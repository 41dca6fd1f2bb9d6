// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Small snapshots, made page by page, and what a restore makes of a file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use host_migrator::snapshot::{Saved, SnapshotWriter, Storage, open_storage};
use host_migrator::{
    DirectIo, GuestRam, Layout, MachineState, Snapshot, SnapshotError, SnapshotTarget, Totals,
};
use spec::{PAGE_SIZE, PageRange};

use super::software_guest::machine::{DESCRIPTION, state};
use super::software_guest::memory::{Memory, like, one};

/// The first page of the second region.
pub const HIGH: u64 = 1 << 12;

/// What each page contains that is not zero.
pub type Pages = BTreeMap<u64, u8>;

/// Memory of 300 pages in two regions.
pub fn memory() -> GuestRam {
    like(Memory::new(200, 100).ram.as_ref())
}

pub fn layout() -> Layout {
    memory().layout().clone()
}

pub fn target(path: &Path) -> SnapshotTarget {
    SnapshotTarget {
        path: path.to_owned(),
        offset: None,
    }
}

pub fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

/// A page of which every word is different.
pub fn content(byte: u8) -> Vec<u8> {
    (0..PAGE_SIZE).map(|at| byte ^ (at / 8) as u8).collect()
}

/// The pages `first .. first + count`.
pub fn range(first: u64, count: u64) -> PageRange {
    PageRange::new(first, count).unwrap()
}

/// Writes `pages` in their order by `writers` threads, finds some zero that were written before, and completes the snapshot.
pub fn save_in(
    storage: Box<dyn Storage>,
    writers: u32,
    pages: &Pages,
) -> Result<Saved, SnapshotError> {
    let writer = SnapshotWriter::begin(storage, &layout(), DESCRIPTION)?;
    let mut writer = writer.with_writers(writers)?;
    // What a guest gave up, or has zeroed, while it was saved.
    writer.pages(range(150, 2), &[content(200), content(201)].concat())?;
    writer.sync()?;
    for (pfn, byte) in pages {
        writer.pages(one(*pfn), &content(!byte))?;
        writer.pages(one(*pfn), &content(*byte))?;
    }
    writer.remove(range(100, 100))?;
    let again = pages.range(100..200);
    for (pfn, byte) in again {
        writer.pages(one(*pfn), &content(*byte))?;
    }
    writer.finish(&machine_state(), Totals::default())
}

pub fn save(target: &SnapshotTarget, pages: &Pages) -> Result<Saved, SnapshotError> {
    save_in(open_storage(target, DirectIo::Auto)?, 2, pages)
}

pub fn machine_state() -> MachineState {
    let mut state = state();
    state.add("serial", 2, vec![9; 5000]).unwrap();
    state.add("nothing", 3, vec![]).unwrap();
    state
}

/// What is restored from `target`, if it is a complete snapshot.
pub fn load(target: &SnapshotTarget) -> Result<Pages, SnapshotError> {
    let snapshot = Snapshot::open(target)?.with_direct_io(DirectIo::Auto)?;
    let ram = memory();
    // What was there before must not shine through.
    ram.write(range(7, 1), &content(1)).unwrap();
    snapshot.load(&ram, threads(2), &|_| ())?;
    assert_eq!(snapshot.description(), DESCRIPTION);
    assert_eq!(*snapshot.state(), machine_state());
    Ok(pages_of(&ram))
}

/// What `ram` contains. Every page must be one of [`content`].
pub fn pages_of(ram: &GuestRam) -> Pages {
    let mut pages = Pages::new();
    for region in ram.regions() {
        for pfn in region.first()..region.end() {
            let mut bytes = vec![0; PAGE_SIZE as usize];
            ram.read(one(pfn), &mut bytes).unwrap();
            if bytes.iter().any(|byte| *byte != 0) {
                assert_eq!(bytes, content(bytes[0]), "page {pfn:#x}");
                pages.insert(pfn, bytes[0]);
            }
        }
    }
    pages
}

/// Some pages: the first and the last of each region, neighbours, and one of those that were found zero.
pub fn some_pages(byte: u8) -> Pages {
    let pfns = [0, 1, 2, 64, 151, 199, HIGH, HIGH + 99];
    pfns.into_iter().zip(byte..).collect()
}
