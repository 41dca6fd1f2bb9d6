// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes a whole snapshot of the two halves that a broken migration has left.
//!
//! The guest has run at the destination since the hand-over. So the destination's half has the machine's state, and a page
//! that it knows is as the guest has it. A page that it does not know has never been there, and the guest has not touched it
//! since: it is as the source has it.

use std::io;
use std::num::NonZeroUsize;

use parking_lot::Mutex;
use spec::file::{Half, Side};
use spec::hint_map::word_masks;
use spec::stream::Totals;
use spec::{PAGE_SIZE, PageRange};

use super::error::SnapshotError;
use super::half::HalfFile;
use super::storage::Storage;
use super::writer::{Saved, SnapshotWriter};
use crate::memory::bitmap::{MigrationBitmap, runs_of_word};
use crate::memory::error::RamError;
use crate::memory::layout::Layout;
use crate::memory::page_store::PageStore;

/// Halves that cannot be made a whole. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconcileError {
    /// There is no half of the destination.
    #[error(
        "the destination's half is needed: the guest has run there since the hand-over, and only that half has its state"
    )]
    NoDestination,
    /// Two halves are of the same side.
    #[error(
        "two of the files are what the {0} has left: give one of the source and one of the destination"
    )]
    Twice(Side),
    /// They are of two migrations, or of two moments.
    #[error(
        "the halves are of different hand-overs: the source's of session {source_half}, the destination's of {destination_half}"
    )]
    OtherHandOver {
        /// Session and number of the source's.
        source_half: String,
        /// Session and number of the destination's.
        destination_half: String,
    },
    /// The memory of one lies elsewhere than that of the other.
    #[error("the halves are of guests whose memory differs in size or place")]
    OtherMemory,
    /// Some pages are in neither half.
    #[error("{pages} pages of the guest are in no half: the guest cannot be made whole")]
    Missing {
        /// How many.
        pages: u64,
        /// Which: the first [`ReconcileError::MOST_RUNS`] runs of them.
        runs: Vec<PageRange>,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl ReconcileError {
    /// The most runs of missing pages that are named.
    pub const MOST_RUNS: usize = 1000;
}

/// A snapshot that was made of two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reconciled {
    /// The snapshot.
    pub saved: Saved,
    /// Pages with content that came from the destination's half.
    pub from_destination: u64,
    /// Pages with content that came from the source's half.
    pub from_source: u64,
}

/// Makes a whole snapshot of `halves`: the source's and the destination's in either order, or the destination's alone if
/// nothing is missing in it. Writes it to the storage that `output` opens. `threads` read and as many write. `copied` is
/// called with the number of pages that were read since it was called last.
///
/// # Errors
/// [`ReconcileError`]. There is no new snapshot then.
pub fn reconcile(
    halves: &[HalfFile],
    output: impl FnOnce() -> Result<Box<dyn Storage>, SnapshotError>,
    threads: NonZeroUsize,
    copied: &(dyn Fn(u64) + Sync),
) -> Result<Reconciled, ReconcileError> {
    let (source, destination) = sides(halves)?;
    let missing = missing_at(destination);
    check_all_is_there(source, &missing)?;
    let layout = destination.file().layout();
    let writer = SnapshotWriter::begin(output()?, layout, destination.file().description())?;
    let writers = u32::try_from(threads.get()).unwrap_or(u32::MAX);
    let merged = Merged {
        layout,
        only: None,
        writer: Mutex::new(writer.with_writers(writers)?),
    };
    let load = |half: &HalfFile, merged: &Merged<'_>| {
        let loaded = half.file().load(merged, threads, copied);
        loaded.map_err(of_the_writer)
    };
    let from_destination = load(destination, &merged)?;
    let merged = Merged {
        only: Some(&missing),
        ..merged
    };
    if let Some(source) = source {
        load(source, &merged)?;
    }
    let totals = Totals {
        rounds: 1,
        ..Totals::default()
    };
    let writer = merged.writer.into_inner();
    let saved = writer.finish(destination.file().state(), totals)?;
    Ok(Reconciled {
        saved,
        from_destination,
        from_source: saved.pages - from_destination,
    })
}

/// The source's half and the destination's, if they belong together.
fn sides(halves: &[HalfFile]) -> Result<(Option<&HalfFile>, &HalfFile), ReconcileError> {
    let of = |side| halves.iter().filter(move |it| it.half().side == side);
    let mut destinations = of(Side::Destination);
    let destination = destinations.next().ok_or(ReconcileError::NoDestination)?;
    let mut sources = of(Side::Source);
    let source = sources.next();
    if destinations.next().is_some() {
        return Err(ReconcileError::Twice(Side::Destination));
    }
    if sources.next().is_some() {
        return Err(ReconcileError::Twice(Side::Source));
    }
    if let Some(source) = source {
        check_match(source, &destination.half(), destination.file().layout())?;
    }
    Ok((source, destination))
}

/// Fails if the half `source` is of another hand-over than `destination`, or of a guest with other memory than `layout`.
pub(crate) fn check_match(
    source: &HalfFile,
    destination: &Half,
    layout: &Layout,
) -> Result<(), ReconcileError> {
    if !source.half().is_of_same_hand_over(destination) {
        let name = |half: &Half| format!("{:016x}, number {}", half.session, half.number);
        return Err(ReconcileError::OtherHandOver {
            source_half: name(&source.half()),
            destination_half: name(destination),
        });
    }
    if source.file().layout() != layout {
        return Err(ReconcileError::OtherMemory);
    }
    Ok(())
}

/// The pages that the destination does not know.
fn missing_at(destination: &HalfFile) -> MigrationBitmap {
    let layout = destination.file().layout();
    let missing = MigrationBitmap::new(layout.bitmap_pages());
    for region in layout.regions() {
        missing.insert(*region);
    }
    let known = destination.known();
    for index in known.occupied() {
        missing.clear(index, known.load(index));
    }
    missing
}

/// Fails if some of the pages that are `missing` at the destination are not in the source's half.
pub(crate) fn check_all_is_there(
    source: Option<&HalfFile>,
    missing: &MigrationBitmap,
) -> Result<(), ReconcileError> {
    let (mut pages, mut runs) = (0, Vec::<PageRange>::new());
    for index in missing.occupied() {
        let at_source = source.map_or(0, |source| source.known().load(index));
        let nowhere = missing.load(index) & !at_source;
        for run in runs_of_word(index as u64 * 64, nowhere) {
            pages += run.count();
            let before = runs.pop_if(|last| last.end() == run.first());
            let first = before.map_or(run.first(), |before| before.first());
            if runs.len() < ReconcileError::MOST_RUNS {
                runs.extend(PageRange::new(first, run.end() - first));
            }
        }
    }
    match pages {
        0 => Ok(()),
        pages => Err(ReconcileError::Missing { pages, runs }),
    }
}

/// What the writer said, if it was the writer that failed.
fn of_the_writer(error: SnapshotError) -> SnapshotError {
    match error {
        SnapshotError::Ram(RamError::Io(error)) => match error.downcast::<SnapshotError>() {
            Ok(error) => error,
            Err(error) => SnapshotError::Ram(RamError::Io(error)),
        },
        error => error,
    }
}

/// The snapshot that is made, as the place for the pages of a half.
struct Merged<'a> {
    layout: &'a Layout,
    /// The pages that are taken; all if it is `None`.
    only: Option<&'a MigrationBitmap>,
    writer: Mutex<SnapshotWriter>,
}

impl PageStore for Merged<'_> {
    fn layout(&self) -> &Layout {
        self.layout
    }

    fn place(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        let content_of = |part: PageRange| {
            let from = ((part.first() - range.first()) * PAGE_SIZE) as usize;
            &content[from..][..part.bytes() as usize]
        };
        let mut writer = self.writer.lock();
        for (index, mask) in word_masks(range) {
            let wanted = self.only.map_or(u64::MAX, |only| only.load(index));
            for part in runs_of_word(index as u64 * 64, mask & wanted) {
                let written = writer.pages(part, content_of(part));
                written.map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    fn make_zero(&self, range: PageRange) -> Result<(), RamError> {
        // What nobody has placed is zero.
        self.layout.check(range).map(|_| ())
    }

    fn is_known_zero(&self) -> bool {
        true
    }
}
