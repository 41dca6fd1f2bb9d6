// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The power is cut, or the saver is killed, at every operation of a save.

use std::fs;
use std::path::Path;

use host_migrator::{SnapshotError, SnapshotTarget};
use spec::stamp::Random;

use super::disk::{Nowhere, Operation, Watched, after, after_power_cut};
use super::rig::{Pages, load, save, save_in, some_pages, target};

/// Power cuts that are tried after each operation.
const CUTS: u64 = 12;

/// The operations of a save of `pages` by `writers` threads.
fn operations(pages: &Pages, in_place: bool, writers: u32) -> Vec<Operation> {
    let path = Path::new("nowhere").to_owned();
    let (storage, done) = Watched::new(Box::new(Nowhere { path, in_place }));
    save_in(Box::new(storage), writers, pages).unwrap();
    std::mem::take(&mut done.lock().unwrap())
}

/// What is restored from a file with these bytes.
fn load_bytes(bytes: &[u8], at: &SnapshotTarget) -> Result<Pages, SnapshotError> {
    fs::write(&at.path, bytes).unwrap();
    load(at)
}

/// Whether this is the error of a file that is not a complete snapshot; a damaged page is not.
fn is_refused(error: &SnapshotError) -> bool {
    use spec::file::FormatError::Bitmap;
    match error {
        SnapshotError::Format { source, .. } => !matches!(source, Bitmap { .. }),
        SnapshotError::Truncated { part, .. } => {
            !["page bitmap", "pages", "checksums"].contains(part)
        }
        _ => false,
    }
}

#[test]
fn a_new_file_is_refused_until_everything_is_there_and_is_whole_from_then_on() {
    // With several writers, operations come in any order between two drains.
    for writers in [0, 1, 3] {
        cut_at_every_operation_of_a_new_file(writers);
    }
}

fn cut_at_every_operation_of_a_new_file(writers: u32) {
    let folder = tempfile::tempdir().unwrap();
    let target = target(&folder.path().join("guest"));
    let pages = some_pages(1);
    let done = operations(&pages, false, writers);
    assert!(done.len() > 20);
    let commit = (done.iter()).rposition(|operation| matches!(operation, Operation::Write(..)));
    let commit = commit.unwrap();
    let mut random = Random::new(5);
    for count in 0..=done.len() {
        let now = load_bytes(&after(&[], &done[..count]), &target);
        match now {
            Ok(loaded) => assert_eq!((loaded, count > commit), (pages.clone(), true), "{count}"),
            Err(error) => assert!(is_refused(&error) && count <= commit, "{count}: {error}"),
        }
        for _ in 0..CUTS {
            let image = after_power_cut(&[], &done[..count], &mut random);
            match load_bytes(&image, &target) {
                Ok(loaded) => assert_eq!(loaded, pages, "{count}"),
                Err(error) => assert!(is_refused(&error), "{count}: {error}"),
            }
        }
    }
    // What is renamed is on the disk.
    let [.., Operation::Sync, Operation::Publish] = &done[..] else {
        panic!("a sync is before the renaming");
    };
    let image = after_power_cut(&[], &done, &mut random);
    assert_eq!(load_bytes(&image, &target).unwrap(), pages);
}

#[test]
fn in_place_a_power_cut_leaves_the_old_snapshot_none_or_the_new_one() {
    for writers in [0, 1, 3] {
        cut_at_every_operation_in_place(writers);
    }
}

fn cut_at_every_operation_in_place(writers: u32) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    let (old, new) = (some_pages(100), some_pages(1));
    save(&target(&path), &old).unwrap();
    let image = fs::read(&path).unwrap();
    let at = SnapshotTarget {
        offset: Some(0),
        ..target(&path)
    };
    let done = operations(&new, true, writers);
    let mut random = Random::new(6);
    let mut found = [0; 3];
    for count in 0..=done.len() {
        for _ in 0..CUTS {
            let image = after_power_cut(&image, &done[..count], &mut random);
            match load_bytes(&image, &at) {
                Ok(loaded) if loaded == old => found[0] += 1,
                Ok(loaded) => {
                    assert_eq!(loaded, new, "{count}");
                    found[1] += 1;
                }
                Err(error) => {
                    assert!(is_refused(&error), "{count}: {error}");
                    found[2] += 1;
                }
            }
        }
    }
    assert!(found.iter().all(|count| *count > 0), "{found:?}");
    let image = after_power_cut(&image, &done, &mut random);
    assert_eq!(load_bytes(&image, &at).unwrap(), new);
}
