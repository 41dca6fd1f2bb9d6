// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Raw memory images are made of snapshots, and snapshots of images.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use host_migrator::snapshot::{PartialFile, RawImage, RawLayout, RawSource, open_storage};
use host_migrator::{DirectIo, Snapshot, SnapshotError};
use spec::PAGE_SIZE;

use super::rig::{HIGH, content, layout, load, machine_state, save, some_pages, target, threads};
use super::software_guest::machine::DESCRIPTION;

const LAYOUTS: [RawLayout; 2] = [RawLayout::Concatenated, RawLayout::AtAddresses];

fn to_raw(snapshot: &Path, image: &Path, how: RawLayout) -> Result<u64, SnapshotError> {
    let snapshot = Snapshot::open(&target(snapshot))?;
    let storage = Box::new(PartialFile::create(image, DirectIo::Auto)?);
    let raw = RawImage::create(storage, snapshot.layout(), how)?;
    let pages = snapshot.load(&raw, threads(2), &|_| ())?;
    raw.finish()?;
    Ok(pages)
}

fn to_snapshot(image: &Path, snapshot: &Path, how: RawLayout) -> Result<u64, SnapshotError> {
    let source = RawSource::open(image, layout(), how)?;
    let storage = open_storage(&target(snapshot), DirectIo::Auto)?;
    let saved = source.save(storage, 2, DESCRIPTION, &machine_state(), &|_| ())?;
    Ok(saved.pages)
}

/// Where the page is in an image of [`layout`].
fn place(pfn: u64, how: RawLayout) -> u64 {
    let page = match how {
        RawLayout::AtAddresses => pfn,
        RawLayout::Concatenated if pfn >= HIGH => 200 + pfn - HIGH,
        RawLayout::Concatenated => pfn,
    };
    page * PAGE_SIZE
}

#[test]
fn an_image_has_every_byte_of_the_guest_and_comes_back_as_the_same_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let [snapshot, image, again] = ["a", "image", "b"].map(|name| folder.path().join(name));
    let pages = some_pages(1);
    save(&target(&snapshot), &pages).unwrap();
    for how in LAYOUTS {
        assert_eq!(to_raw(&snapshot, &image, how).unwrap(), pages.len() as u64);
        let bytes = fs::read(&image).unwrap();
        let mut expected = vec![0; how.image_bytes(&layout()) as usize];
        for (pfn, byte) in &pages {
            let at = place(*pfn, how) as usize;
            expected[at..at + PAGE_SIZE as usize].copy_from_slice(&content(*byte));
        }
        assert!(bytes == expected, "{how:?}");
        let found = fs::metadata(&image).unwrap();
        assert!(found.blocks() * 512 < found.len(), "zeros are holes");
        assert_eq!(found.mode() & 0o777, 0o600);

        let count = to_snapshot(&image, &again, how).unwrap();
        assert_eq!(count, pages.len() as u64);
        assert_eq!(load(&target(&again)).unwrap(), pages);
    }
}

#[test]
fn zeros_and_holes_of_an_image_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let [image, snapshot] = ["image", "snapshot"].map(|name| folder.path().join(name));
    let how = RawLayout::Concatenated;
    let file = File::create(&image).unwrap();
    file.set_len(how.image_bytes(&layout())).unwrap();
    // Zeros that take room, and content.
    file.write_all_at(&[0; 8 * PAGE_SIZE as usize], 40 * PAGE_SIZE)
        .unwrap();
    file.write_all_at(&content(7), 44 * PAGE_SIZE).unwrap();
    assert_eq!(to_snapshot(&image, &snapshot, how).unwrap(), 1);
    assert_eq!(load(&target(&snapshot)).unwrap(), [(44, 7)].into());
}

#[test]
fn a_snapshot_of_a_newer_version_is_named_and_not_converted() {
    let folder = tempfile::tempdir().unwrap();
    let [snapshot, output] = ["a", "out"].map(|name| folder.path().join(name));
    save(&target(&snapshot), &some_pages(1)).unwrap();
    let file = File::options().write(true).open(&snapshot).unwrap();
    file.write_all_at(&2u32.to_le_bytes(), 8).unwrap();
    let refused = to_raw(&snapshot, &output, RawLayout::Concatenated).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("snapshot version 2, this build knows version 1"),
        "{text}"
    );
    assert!(!output.exists());
}

#[test]
fn what_cannot_be_converted_leaves_the_file_that_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let [snapshot, image, output] = ["a", "image", "out"].map(|name| folder.path().join(name));
    let how = RawLayout::Concatenated;
    save(&target(&snapshot), &some_pages(1)).unwrap();
    fs::write(&output, b"old").unwrap();
    // A page of the snapshot is damaged.
    let at = Snapshot::open(&target(&snapshot))
        .unwrap()
        .places()
        .page(64);
    let file = File::options().write(true).open(&snapshot).unwrap();
    file.write_all_at(b"x", at + 9).unwrap();
    let refused = to_raw(&snapshot, &output, how).unwrap_err();
    assert!(refused.to_string().contains("0x40000"), "{refused}");
    // The image has another length than the memory.
    for length in [0, 299 * PAGE_SIZE, 300 * PAGE_SIZE - 1, 301 * PAGE_SIZE] {
        File::create(&image).unwrap().set_len(length).unwrap();
        let refused = to_snapshot(&image, &output, how).unwrap_err();
        assert!(
            matches!(refused, SnapshotError::ImageLength { found, expected, .. }
                if found == length && expected == 300 * PAGE_SIZE),
            "{refused}"
        );
    }
    // It becomes shorter while it is read.
    File::create(&image)
        .unwrap()
        .set_len(300 * PAGE_SIZE)
        .unwrap();
    let source = RawSource::open(&image, layout(), how).unwrap();
    File::create(&image).unwrap().set_len(100).unwrap();
    let storage = open_storage(&target(&output), DirectIo::Auto).unwrap();
    source
        .save(storage, 1, DESCRIPTION, &machine_state(), &|_| ())
        .unwrap_err();
    assert_eq!(fs::read(&output).unwrap(), b"old");
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 3, "no partial file is left");
}
