// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Room that is reserved before the pages come: it is there for a time only, and never takes the room of what is written.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use host_migrator::snapshot::{Saved, SnapshotWriter, open_storage};
use host_migrator::{DirectIo, Layout, MachineState, SnapshotError, Totals};
use spec::PAGE_SIZE;

use super::mounted;
use super::rig::{range, target};

/// Pages of the guest's memory.
const PAGES: u64 = 8192;
/// Pages that are given at a time.
const RUN: u64 = 256;

/// Bytes of the blocks of `path`.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Saves a guest whose first `count` pages are in use, and returns how many bytes of blocks the file had just before its end.
fn save(path: &Path, count: u64) -> Result<(Saved, u64), SnapshotError> {
    let layout = Layout::new(vec![range(0, PAGES)]).unwrap();
    let storage = open_storage(&target(path), DirectIo::Auto)?;
    let mut writer = SnapshotWriter::begin(storage, &layout, b"")?.with_writers(2)?;
    let content = vec![7; (RUN * PAGE_SIZE) as usize];
    for first in (0..count).step_by(RUN as usize) {
        writer.pages(range(first, RUN), &content)?;
    }
    writer.drain()?;
    let partial = path.with_file_name("guest.partial");
    let before = allocated(&partial);
    let saved = writer.finish(&MachineState::default(), Totals::default())?;
    Ok((saved, before))
}

#[test]
fn room_for_pages_that_never_came_is_given_back() {
    // Beside the program, where there is a disk; the folder for temporary files is often in memory.
    let folder = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(folder.parent().unwrap()).unwrap();
    let path = folder.path().join("guest");
    let count = PAGES / 4;
    let (saved, before) = save(&path, count).unwrap();
    assert_eq!(saved.pages, count);
    let (bytes, after) = (count * PAGE_SIZE, allocated(&path));
    println!("{before} bytes of blocks before the end, {after} after it, {bytes} in pages");
    if before <= bytes + bytes / 4 {
        spec_testing::skipped("nothing is reserved here: no direct I/O, or a full disk");
    }
    assert!(after <= bytes + bytes / 64, "{after} for {bytes}");
}

#[test]
fn a_disk_with_room_for_the_pages_alone_takes_the_snapshot() {
    let test = "reserved::a_disk_with_room_for_the_pages_alone_takes_the_snapshot";
    let Some(folder) = mounted::folder(test, "-t tmpfs -o size=24m tmpfs") else {
        return;
    };
    let path = folder.join("guest");
    // 20 of the 24 MiB.
    let (saved, _) = save(&path, 5 << 10).unwrap();
    assert_eq!(saved.pages, 5 << 10);
    fs::remove_file(&path).unwrap();
    // 28 MiB have no room, however they are written.
    let refused = save(&path, 7 << 10).unwrap_err();
    assert!(refused.to_string().contains("No space left"), "{refused}");
}
