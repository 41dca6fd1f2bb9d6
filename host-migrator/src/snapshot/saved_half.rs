// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Saves what one side of a migration has left.

use spec::file::Half;
use spec::stream::Totals;
use spec::{PAGE_SIZE, PageRange};

use super::error::SnapshotError;
use super::storage::Storage;
use super::writer::{Saved, SnapshotWriter};
use crate::memory::bitmap::{MigrationBitmap, runs_of_word};
use crate::memory::error::RamError;
use crate::memory::layout::Layout;
use crate::memory::zero::is_zero;
use crate::vm::state::MachineState;

const PAGE: usize = PAGE_SIZE as usize;

/// What a side has left. Its pages do not change any more.
pub(crate) struct SavedHalf<'a> {
    /// Whose half it is.
    pub(crate) half: Half,
    /// Where the guest's memory lies.
    pub(crate) layout: &'a Layout,
    /// What the guest needs of its machine. Only the destination's half has it.
    pub(crate) description: &'a [u8],
    /// The machine's state. Only the destination's half has it.
    pub(crate) state: &'a MachineState,
    /// The pages that the side has, all of them in the layout.
    pub(crate) known: &'a MigrationBitmap,
}

impl SavedHalf<'_> {
    /// Writes it to `storage`. `read` copies pages of one region.
    pub(crate) fn save(
        &self,
        storage: Box<dyn Storage>,
        read: impl Fn(PageRange, &mut [u8]) -> Result<(), RamError>,
    ) -> Result<Saved, SnapshotError> {
        let mut writer =
            SnapshotWriter::begin_half(storage, self.layout, self.description, self.half)?;
        let mut buffer = vec![0; 64 * PAGE];
        for index in self.known.occupied() {
            for run in runs_of_word(index as u64 * 64, self.known.load(index)) {
                for piece in self.layout.pieces(run) {
                    let content = &mut buffer[..piece.bytes() as usize];
                    read(piece, content)?;
                    put(&mut writer, piece, content)?;
                }
            }
        }
        writer.finish(self.state, Totals::default())
    }
}

/// Writes those of the pages of `range`, at most 64, that are not zero, and notes the others as zero.
fn put(writer: &mut SnapshotWriter, range: PageRange, content: &[u8]) -> Result<(), SnapshotError> {
    let (pages, _) = content.as_chunks::<PAGE>();
    let zero = (pages.iter().enumerate())
        .filter(|(_, page)| is_zero(page))
        .fold(0, |zero, (index, _)| zero | 1u64 << index);
    let all = u64::MAX >> (64 - range.count());
    for run in runs_of_word(range.first(), all & !zero) {
        let from = ((run.first() - range.first()) * PAGE_SIZE) as usize;
        writer.pages(run, &content[from..][..run.bytes() as usize])?;
    }
    runs_of_word(range.first(), zero).try_for_each(|run| writer.remove(run))
}
