// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Places what sections bring in a page store. Nothing of a section is placed before all of it has been checked.

use parking_lot::Mutex;
use spec::PageRange;
use spec::stream::{CompressedPrefix, PagesPrefix, RUN_BYTES, SectionKind, StreamError, runs};

use super::error::ReceiveError;
use crate::compression::{UnpackError, Unpacker};
use crate::memory::page_store::PageStore;
use crate::wire::SectionError;

/// Places pages in a store. Several receivers may do so at once.
#[derive(Clone, Copy)]
pub(super) struct Placer<'a> {
    store: &'a dyn PageStore,
    /// Whoever places pages holds it.
    turn: Option<&'a Mutex<()>>,
}

impl<'a> Placer<'a> {
    /// Of an empty store: what an earlier attempt has left is cleared.
    pub(super) fn new(store: &'a dyn PageStore) -> Result<Self, ReceiveError> {
        store.clear()?;
        Ok(Self { store, turn: None })
    }

    /// Places pages while it holds `turn`, if the store takes those of one thread only. The others sleep meanwhile: in the kernel they
    /// would wait busily, and keep a processor from what receives and sends.
    pub(super) fn in_turns(self, turn: &'a Mutex<()>) -> Self {
        let turn = self.store.is_placed_by_one().then_some(turn);
        Self { turn, ..self }
    }

    /// Places the pages of a `Pages` or `CompressedPages` section, if all of its runs are in guest memory. Returns how many these
    /// are.
    pub(super) fn pages(
        self,
        kind: SectionKind,
        payload: &[u8],
        unpacker: &mut Unpacker,
    ) -> Result<u64, ReceiveError> {
        match kind {
            SectionKind::CompressedPages => self.compressed(payload, unpacker),
            _ => self.plain(payload),
        }
    }

    /// As [`Placer::pages`], for a `Pages` section.
    pub(super) fn plain(self, payload: &[u8]) -> Result<u64, ReceiveError> {
        let malformed = || SectionError::from(StreamError::Malformed(SectionKind::Pages));
        let (prefix, rest) = payload.split_first_chunk().ok_or_else(malformed)?;
        let prefix = PagesPrefix::from_bytes(prefix, payload.len() as u64);
        let prefix = prefix.map_err(SectionError::from)?;
        let table_bytes = prefix.runs as usize * RUN_BYTES;
        let (table, content) = rest.split_at_checked(table_bytes).ok_or_else(malformed)?;
        let table = self.table(SectionKind::Pages, table, prefix.pages)?;
        self.place(table, content)
    }

    fn compressed(self, payload: &[u8], unpacker: &mut Unpacker) -> Result<u64, ReceiveError> {
        let (prefix, table, packed) =
            CompressedPrefix::split(payload).map_err(SectionError::from)?;
        let table = self.table(SectionKind::CompressedPages, table, prefix.pages)?;
        // At most the pages of a section.
        let content = unpacker.unpack(prefix.method, packed, prefix.content_bytes())?;
        if crc32fast::hash(content) != prefix.content_crc {
            return Err(UnpackError::Checksum.into());
        }
        self.place(table, content)
    }

    /// A table of runs in guest memory that have `pages` pages together.
    fn table(self, kind: SectionKind, bytes: &[u8], pages: u32) -> Result<Table<'_>, ReceiveError> {
        if self.checked(kind, bytes)? == u128::from(pages) {
            Ok(Table { kind, bytes, pages })
        } else {
            Err(SectionError::from(StreamError::Malformed(kind)).into())
        }
    }

    fn place(self, table: Table<'_>, mut content: &[u8]) -> Result<u64, ReceiveError> {
        let _turn = self.turn.map(Mutex::lock);
        for run in runs(table.kind, table.bytes) {
            let run = run.map_err(SectionError::from)?;
            // The runs have as many pages as the prefix says, and these fit a section.
            let bytes = run.bytes() as usize;
            let malformed = || SectionError::from(StreamError::Malformed(table.kind));
            let (of_run, after) = content.split_at_checked(bytes).ok_or_else(malformed)?;
            self.store.place(run, of_run)?;
            content = after;
        }
        Ok(table.pages.into())
    }

    /// Makes the runs of a `Zero` or `Discard` section zero. Returns how many pages these are.
    pub(super) fn make_zero(self, kind: SectionKind, table: &[u8]) -> Result<u64, ReceiveError> {
        let pages = self.checked(kind, table)?;
        let pages = u64::try_from(pages).map_err(|_| {
            // Only runs that say the same again and again have so many.
            SectionError::from(StreamError::Malformed(kind))
        })?;
        for run in runs(kind, table) {
            self.store.make_zero(run.map_err(SectionError::from)?)?;
        }
        Ok(pages)
    }

    /// The runs of `table`, if all of them are in guest memory.
    pub(super) fn runs(
        self,
        kind: SectionKind,
        table: &[u8],
    ) -> Result<Vec<PageRange>, ReceiveError> {
        self.checked(kind, table)?;
        let runs: Result<_, _> = runs(kind, table).collect();
        Ok(runs.map_err(SectionError::from)?)
    }

    /// Makes sure that all runs of `table` are in guest memory. Returns how many pages they have.
    fn checked(self, kind: SectionKind, table: &[u8]) -> Result<u128, ReceiveError> {
        let mut pages = 0;
        for run in runs(kind, table) {
            let run: PageRange = run.map_err(SectionError::from)?;
            self.store.layout().check(run)?;
            pages += u128::from(run.count());
        }
        Ok(pages)
    }
}

/// The runs of a section, all of them in guest memory.
struct Table<'a> {
    kind: SectionKind,
    bytes: &'a [u8],
    pages: u32,
}
