// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that are damaged, cut off, or were copied by a tool that knows nothing of holes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use host_migrator::{Snapshot, SnapshotError, SnapshotTarget};
use spec::PAGE_SIZE;
use spec::file::FormatError;

use super::rig::{HIGH, Pages, load, save, some_pages, target, threads};

/// A snapshot, and its bytes.
struct Sample {
    _folder: tempfile::TempDir,
    path: PathBuf,
    target: SnapshotTarget,
    pages: Pages,
    bytes: Vec<u8>,
}

impl Sample {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest");
        let target = target(&path);
        let pages = some_pages(1);
        save(&target, &pages).unwrap();
        Self {
            bytes: fs::read(&path).unwrap(),
            _folder: folder,
            path,
            target,
            pages,
        }
    }

    fn open(&self) -> Snapshot {
        Snapshot::open(&self.target).unwrap()
    }

    /// The slot of each page in the file, with its number.
    fn slots(&self) -> impl Iterator<Item = (u64, u64)> {
        let slot = |pfn: &u64| {
            if *pfn < 200 { *pfn } else { 200 + pfn - HIGH }
        };
        self.pages.keys().map(move |pfn| (slot(pfn), *pfn))
    }

    /// What a restore makes of the file while the byte at `at` is `byte`.
    fn with_byte(&self, at: u64, byte: u8) -> Result<Pages, SnapshotError> {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(&[byte], at).unwrap();
        let loaded = load(&self.target);
        file.write_all_at(&self.bytes[at as usize..][..1], at)
            .unwrap();
        loaded
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is_and_a_page_is_named() {
    let sample = Sample::new();
    let places = sample.open().places();
    let flip = |at: u64, bit: u32| sample.with_byte(at, sample.bytes[at as usize] ^ (1 << bit));
    // Header, table of regions and description; the used block of the bitmap; state and commit record.
    let used_front = 12288 + super::software_guest::machine::DESCRIPTION.len() as u64;
    let regions = 4096..4096 + 32;
    let parts = [
        0..4096,
        regions,
        12288..used_front,
        places.bitmap_at..places.bitmap_at + 4096,
        places.state_at..sample.bytes.len() as u64,
    ];
    for at in parts.into_iter().flatten().step_by(3) {
        let refused = flip(at, (at % 8) as u32).unwrap_err();
        assert!(
            !matches!(refused, SnapshotError::Page { .. }),
            "byte {at}: {refused}"
        );
    }
    for (slot, pfn) in sample.slots() {
        let of_page = (0..PAGE_SIZE).step_by(509).map(|at| places.page(slot) + at);
        let of_checksum = (0..4).map(|at| places.checksum(slot) + at);
        for at in of_page.chain(of_checksum) {
            let refused = flip(at, (at % 8) as u32).unwrap_err();
            assert!(
                matches!(refused, SnapshotError::Page { gpa, .. } if gpa == pfn * PAGE_SIZE),
                "byte {at}: {refused}"
            );
        }
    }
    assert_eq!(load(&sample.target).unwrap(), sample.pages);
}

#[test]
fn what_lies_where_no_page_is_has_no_meaning() {
    let sample = Sample::new();
    let places = sample.open().places();
    for slot in [3, 100, 150, 298] {
        for at in [places.page(slot), places.checksum(slot)] {
            assert_eq!(sample.with_byte(at, 0xee).unwrap(), sample.pages);
        }
    }
}

#[test]
fn all_damage_is_found_at_once_and_told_by_address() {
    let sample = Sample::new();
    let places = sample.open().places();
    let file = File::options().write(true).open(&sample.path).unwrap();
    let (slots, pfns): (Vec<_>, Vec<_>) = sample.slots().unzip();
    for index in [1, 4, 7] {
        file.write_all_at(&[0xee; 100], places.page(slots[index]) + 7)
            .unwrap();
    }
    let verified = sample.open().verify(threads(2), &|_| ()).unwrap();
    let found: Vec<_> = verified.damage.iter().map(|damage| damage.gpa).collect();
    assert_eq!(found, [1, 4, 7].map(|index| pfns[index] * PAGE_SIZE));
    assert_eq!(
        (verified.damaged, verified.pages),
        (3, sample.pages.len() as u64)
    );
    file.write_all_at(&[0xee], places.bitmap_at).unwrap();
    let verified = sample.open().verify(threads(1), &|_| ()).unwrap();
    assert_eq!((verified.damaged, verified.pages), (1, 0));
    assert!(
        verified.damage[0]
            .what
            .contains("block 0 of the page bitmap")
    );
}

#[test]
fn a_file_that_was_cut_off_anywhere_is_refused() {
    let sample = Sample::new();
    let length = sample.bytes.len() as u64;
    let places = sample.open().places();
    let edges = [
        0,
        4096,
        4128,
        12288,
        places.bitmap_at,
        places.checksums_at,
        places.pages_at,
        places.state_at,
        places.state_at + 128,
        length - 128,
        length,
    ];
    let around = edges
        .iter()
        .flat_map(|edge| [edge.saturating_sub(1), *edge, edge + 1]);
    let everywhere = (0..length).step_by(10_007);
    for cut in around.chain(everywhere).filter(|cut| *cut < length) {
        fs::write(&sample.path, &sample.bytes[..cut as usize]).unwrap();
        let refused = Snapshot::open(&sample.target).unwrap_err();
        assert!(
            matches!(refused, SnapshotError::Truncated { .. }),
            "{cut}: {refused}"
        );
    }
    // What follows a snapshot does not belong to it.
    let more = [&sample.bytes[..], &[1; 1000]].concat();
    fs::write(&sample.path, more).unwrap();
    assert_eq!(load(&sample.target).unwrap(), sample.pages);
}

#[test]
fn holes_that_were_filled_and_zeros_that_became_holes_change_nothing() {
    let sample = Sample::new();
    // The bytes were read: a file that is written with them has no holes.
    fs::write(&sample.path, &sample.bytes).unwrap();
    assert_eq!(load(&sample.target).unwrap(), sample.pages);
    // A file without any block of zeros, however small.
    let sparse = File::create(&sample.path).unwrap();
    sparse.set_len(sample.bytes.len() as u64).unwrap();
    for (at, block) in (0..).step_by(512).zip(sample.bytes.chunks(512)) {
        if block.iter().any(|byte| *byte != 0) {
            sparse.write_all_at(block, at).unwrap();
        }
    }
    assert_eq!(load(&sample.target).unwrap(), sample.pages);
}

#[test]
fn a_page_that_a_tool_has_lost_is_named() {
    let sample = Sample::new();
    let places = sample.open().places();
    let (slot, pfn) = sample.slots().last().unwrap();
    let file = File::options().write(true).open(&sample.path).unwrap();
    file.write_all_at(&[0; 4096], places.page(slot)).unwrap();
    file.write_all_at(&[0; 4], places.checksum(slot)).unwrap();
    let refused = load(&sample.target).unwrap_err();
    let address = format!("{:#x}", pfn * PAGE_SIZE);
    assert!(refused.to_string().contains(&address), "{refused}");
}

#[test]
fn a_block_of_the_page_bitmap_that_was_lost_is_noticed() {
    let sample = Sample::new();
    let at = sample.open().places().bitmap_at;
    let file = File::options().write(true).open(&sample.path).unwrap();
    file.write_all_at(&[0; 4096], at).unwrap();
    let there = sample.pages.len() as u64;
    let refused = load(&sample.target).unwrap_err();
    assert!(
        matches!(refused, SnapshotError::Pages { found: 0, expected, .. } if expected == there),
        "{refused}"
    );
    let refused = sample.open().verify(threads(2), &|_| ()).unwrap_err();
    assert!(matches!(refused, SnapshotError::Pages { .. }), "{refused}");
}

#[test]
fn what_is_no_snapshot_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| target(&folder.path().join(name));
    let open = |name| Snapshot::open(&at(name)).unwrap_err();
    fs::write(folder.path().join("text"), [b'x'; 9000]).unwrap();
    fs::write(folder.path().join("zeros"), [0; 900_000]).unwrap();
    for name in ["text", "zeros"] {
        let magic = FormatError::Magic;
        assert!(matches!(open(name), SnapshotError::Format { source, .. } if source == magic));
    }
    assert!(matches!(open("none"), SnapshotError::Io { .. }));
    fs::create_dir(folder.path().join("folder")).unwrap();
    let pipe = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("pipe"), pipe).unwrap();
    let folder_refused = open("folder");
    assert!(
        matches!(folder_refused, SnapshotError::NotAFile(_)),
        "{folder_refused}"
    );
    let device = Snapshot::open(&target(Path::new("/dev/null"))).unwrap_err();
    for (refused, named) in [(open("pipe"), "pipe"), (device, "character device")] {
        assert!(
            matches!(refused, SnapshotError::Unseekable { kind, .. } if kind == named),
            "{refused}"
        );
    }

    let mut newer = Sample::new();
    newer.bytes[8] = 2;
    fs::write(&newer.path, &newer.bytes).unwrap();
    let refused = load(&newer.target).unwrap_err().to_string();
    assert!(
        refused.contains("snapshot version 2, this build knows version 1"),
        "{refused}"
    );
}

#[test]
fn a_header_that_promises_more_than_there_is_takes_no_memory() {
    let sample = Sample::new();
    let sizes = spec::file::Sizes {
        pages: spec::file::MAX_PAGES,
        regions: 2,
        description_bytes: 1 << 20,
    };
    let header = spec::file::Header {
        sizes,
        ..*sample.open().header()
    };
    let mut bytes = sample.bytes.clone();
    bytes[..4096].copy_from_slice(&header.to_bytes().unwrap());
    fs::write(&sample.path, bytes).unwrap();
    let refused = Snapshot::open(&sample.target).unwrap_err();
    let pages = FormatError::Field("pages");
    assert!(
        matches!(refused, SnapshotError::Format { source, .. } if source == pages),
        "{refused}"
    );
}
