// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two halves of a guest become a whole snapshot, or it is said what is missing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use host_migrator::snapshot::{
    Half, HalfFile, ReconcileError, Reconciled, Side, SnapshotWriter, open_storage, reconcile,
};
use host_migrator::{DirectIo, Layout, Snapshot, SnapshotError, Totals};
use spec::PageRange;
use spec::file::Bitmap;
use spec::stamp::Random;

use super::rig::{
    Pages, content, layout, load, machine_state, range, save, some_pages, target, threads,
};
use super::software_guest::machine::DESCRIPTION;
use super::software_guest::memory::one;

const SOURCE: Half = Half {
    side: Side::Source,
    session: 0xabcd,
    number: 7,
};
const DESTINATION: Half = Half {
    side: Side::Destination,
    ..SOURCE
};

/// What a side has of a page.
#[derive(Clone, Copy)]
enum Has {
    Nothing,
    Zero,
    Content(u8),
}

/// The halves of a test, and the snapshot that is made of them.
struct Files {
    _folder: tempfile::TempDir,
    source: PathBuf,
    destination: PathBuf,
    whole: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [source, destination, whole] = ["a", "b", "c"].map(|name| folder.path().join(name));
        Self {
            _folder: folder,
            source,
            destination,
            whole,
        }
    }

    fn reconcile(&self) -> Result<Reconciled, ReconcileError> {
        // The order does not matter.
        self.reconcile_of(&[&self.destination, &self.source])
    }

    fn reconcile_of(&self, paths: &[&Path]) -> Result<Reconciled, ReconcileError> {
        let halves: Result<Vec<_>, _> = paths.iter().map(|path| open(path)).collect();
        let output = || open_storage(&target(&self.whole), DirectIo::Auto);
        reconcile(&halves?, output, threads(2), &|_| ())
    }
}

fn open(path: &Path) -> Result<HalfFile, SnapshotError> {
    HalfFile::open(&target(path))
}

/// The guest's pages.
fn pfns(layout: &Layout) -> impl Iterator<Item = u64> {
    let regions = layout.regions().iter();
    regions.flat_map(|region| region.first()..region.end())
}

/// Saves the `half` of a guest with this `layout` of which a side has what `has` says.
fn save_half(path: &Path, half: Half, layout: &Layout, has: impl Fn(u64) -> Has) {
    let storage = open_storage(&target(path), DirectIo::Auto).unwrap();
    let mut writer = SnapshotWriter::begin_half(storage, layout, DESCRIPTION, half).unwrap();
    for pfn in pfns(layout) {
        match has(pfn) {
            Has::Nothing => {}
            Has::Zero => writer.remove(one(pfn)).unwrap(),
            Has::Content(byte) => writer.pages(one(pfn), &content(byte)).unwrap(),
        }
    }
    let state = match half.side {
        Side::Source => Default::default(),
        Side::Destination => machine_state(),
    };
    writer.finish(&state, Totals::default()).unwrap();
}

#[test]
fn two_halves_make_the_guest_as_it_is_at_the_destination_whatever_was_where() {
    for seed in 0..12 {
        let files = Files::new();
        let mut random = Random::new(seed);
        // Of each page: what the source had at the hand-over, and what the destination has now.
        let mut pages = std::collections::BTreeMap::new();
        for pfn in pfns(&layout()) {
            let mut some = |nothing| match random.below(3) {
                0 => nothing,
                1 => Has::Zero,
                _ => Has::Content(1 + random.below(255) as u8),
            };
            let destination = some(Has::Nothing);
            let source = match destination {
                // Nobody has it but the source.
                Has::Nothing => some(Has::Zero),
                _ => some(Has::Nothing),
            };
            pages.insert(pfn, (source, destination));
        }
        save_half(&files.source, SOURCE, &layout(), |pfn| pages[&pfn].0);
        save_half(&files.destination, DESTINATION, &layout(), |pfn| {
            pages[&pfn].1
        });
        let made = files.reconcile().unwrap();
        let now = |(pfn, (source, destination)): (&u64, &(Has, Has))| {
            let newest = match destination {
                Has::Nothing => source,
                there => there,
            };
            match newest {
                Has::Content(byte) => Some((*pfn, *byte)),
                _ => None,
            }
        };
        let expected: Pages = pages.iter().filter_map(now).collect();
        assert_eq!(
            load(&target(&files.whole)).unwrap(),
            expected,
            "seed {seed}"
        );
        assert_eq!(made.saved.pages, expected.len() as u64);
        assert_eq!(made.from_source + made.from_destination, made.saved.pages);
    }
}

#[test]
fn pages_that_neither_half_has_are_named_and_the_file_that_was_there_stays() {
    let files = Files::new();
    fs::write(&files.whole, b"old").unwrap();
    let has = |gone: [PageRange; 2]| {
        move |pfn| {
            let is_gone = gone.iter().any(|run| run.first() <= pfn && pfn < run.end());
            if is_gone {
                Has::Nothing
            } else {
                Has::Content(1)
            }
        }
    };
    save_half(
        &files.source,
        SOURCE,
        &layout(),
        has([range(10, 3), range(60, 70)]),
    );
    save_half(
        &files.destination,
        DESTINATION,
        &layout(),
        has([range(12, 5), range(50, 100)]),
    );
    match files.reconcile().unwrap_err() {
        ReconcileError::Missing { pages, runs } => {
            assert_eq!((pages, runs), (71, vec![range(12, 1), range(60, 70)]));
        }
        error => panic!("{error}"),
    }
    assert_eq!(fs::read(&files.whole).unwrap(), b"old");
}

#[test]
fn halves_that_do_not_belong_together_are_refused_and_nothing_is_made() {
    let other_layout = Layout::new(vec![range(0, 300)]).unwrap();
    let other = [
        (
            DESTINATION,
            layout(),
            "two of the files are what the destination has left",
        ),
        (
            Half {
                session: 1,
                ..SOURCE
            },
            layout(),
            "different hand-overs",
        ),
        (
            Half {
                number: 8,
                ..SOURCE
            },
            layout(),
            "different hand-overs",
        ),
        (SOURCE, other_layout, "memory differs"),
    ];
    for (half, layout_of_other, why) in other {
        let files = Files::new();
        save_half(&files.destination, DESTINATION, &layout(), |_| Has::Zero);
        save_half(&files.source, half, &layout_of_other, |_| Has::Zero);
        let refused = files.reconcile().unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
        assert!(!files.whole.exists());
    }
}

#[test]
fn a_destinations_half_in_which_nothing_is_missing_is_enough_and_a_sources_never_is() {
    let files = Files::new();
    save_half(&files.source, SOURCE, &layout(), |_| Has::Content(1));
    let refused = files.reconcile_of(&[&files.source]).unwrap_err();
    assert!(
        matches!(refused, ReconcileError::NoDestination),
        "{refused}"
    );
    let save = |missing| {
        let has = move |pfn| match pfn {
            5 => missing,
            _ => Has::Content(2),
        };
        save_half(&files.destination, DESTINATION, &layout(), has);
    };
    save(Has::Nothing);
    let refused = files.reconcile_of(&[&files.destination]).unwrap_err();
    assert!(
        matches!(refused, ReconcileError::Missing { pages: 1, .. }),
        "{refused}"
    );
    save(Has::Zero);
    let made = files.reconcile_of(&[&files.destination]).unwrap();
    assert_eq!((made.from_destination, made.from_source), (299, 0));
}

#[test]
fn a_half_is_not_restored_as_a_guest_and_a_snapshot_is_not_a_half() {
    let files = Files::new();
    save_half(&files.source, SOURCE, &layout(), |_| Has::Content(1));
    let refused = Snapshot::open(&target(&files.source)).unwrap_err();
    assert!(
        refused.to_string().contains("lacuna reconcile"),
        "{refused}"
    );
    save(&target(&files.whole), &some_pages(1)).unwrap();
    let refused = open(&files.whole).unwrap_err();
    assert!(matches!(refused, SnapshotError::Whole(_)), "{refused}");
}

#[test]
fn a_page_that_is_damaged_in_a_half_is_named_and_nothing_is_made() {
    let files = Files::new();
    save_half(&files.source, SOURCE, &layout(), |_| Has::Content(1));
    save_half(
        &files.destination,
        DESTINATION,
        &layout(),
        |pfn| match pfn {
            64 => Has::Nothing,
            _ => Has::Content(2),
        },
    );
    let places = open(&files.source).unwrap().file().places();
    let file = File::options().write(true).open(&files.source).unwrap();
    file.write_all_at(b"x", places.page(64) + 9).unwrap();
    let refused = files.reconcile().unwrap_err().to_string();
    assert!(refused.contains("0x40000"), "{refused}");
    assert!(!files.whole.exists());
}

#[test]
fn a_damaged_or_lost_block_of_known_pages_is_noticed() {
    let files = Files::new();
    save_half(&files.source, SOURCE, &layout(), |_| Has::Zero);
    let good = fs::read(&files.source).unwrap();
    let at = open(&files.source)
        .unwrap()
        .file()
        .places()
        .bitmap_block(Bitmap::Known, 0) as usize;
    let refused = |bytes: &[u8]| {
        fs::write(&files.source, bytes).unwrap();
        open(&files.source).unwrap_err().to_string()
    };
    for byte in (at..at + 4096).step_by(13) {
        let mut bytes = good.clone();
        bytes[byte] ^= 1 << (byte % 8);
        let why = refused(&bytes);
        assert!(why.contains("bitmap of known pages"), "{why}");
    }
    let mut lost = good.clone();
    lost[at..at + 4096].fill(0);
    let why = refused(&lost);
    assert!(why.contains("has 0 pages"), "{why}");
}
