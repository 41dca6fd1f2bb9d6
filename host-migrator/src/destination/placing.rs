// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Places what sections bring in a page store. Nothing of a section is placed before all of it has been checked.

use spec::PageRange;
use spec::stream::{PagesPrefix, RUN_BYTES, SectionKind, StreamError, runs};

use super::error::ReceiveError;
use crate::memory::page_store::PageStore;
use crate::wire::SectionError;

/// Places pages in a store. Several receivers may do so at once.
#[derive(Clone, Copy)]
pub(super) struct Placer<'a>(&'a dyn PageStore);

impl<'a> Placer<'a> {
    /// Of an empty store: what an earlier attempt has left is cleared.
    pub(super) fn new(store: &'a dyn PageStore) -> Result<Self, ReceiveError> {
        store.clear()?;
        Ok(Self(store))
    }

    /// Places the pages of a `Pages` section, if all of its runs are in guest memory. Returns how many these are.
    pub(super) fn pages(self, payload: &[u8]) -> Result<u64, ReceiveError> {
        let malformed = || SectionError::from(StreamError::Malformed(SectionKind::Pages));
        let (prefix, rest) = payload.split_first_chunk().ok_or_else(malformed)?;
        let prefix = PagesPrefix::from_bytes(prefix, payload.len() as u64);
        let prefix = prefix.map_err(SectionError::from)?;
        let table_bytes = prefix.runs as usize * RUN_BYTES;
        let (table, mut content) = rest.split_at_checked(table_bytes).ok_or_else(malformed)?;
        if self.checked(SectionKind::Pages, table)? != u128::from(prefix.pages) {
            return Err(malformed().into());
        }
        for run in runs(SectionKind::Pages, table) {
            let run = run.map_err(SectionError::from)?;
            // The runs have as many pages as the prefix says, and these fit a section.
            let bytes = run.bytes() as usize;
            let (of_run, after) = content.split_at_checked(bytes).ok_or_else(malformed)?;
            self.0.place(run, of_run)?;
            content = after;
        }
        Ok(prefix.pages.into())
    }

    /// Makes the runs of a `Zero` or `Discard` section zero. Returns how many pages these are.
    pub(super) fn make_zero(self, kind: SectionKind, table: &[u8]) -> Result<u64, ReceiveError> {
        let pages = self.checked(kind, table)?;
        let pages = u64::try_from(pages).map_err(|_| {
            // Only runs that say the same again and again have so many.
            SectionError::from(StreamError::Malformed(kind))
        })?;
        for run in runs(kind, table) {
            self.0.make_zero(run.map_err(SectionError::from)?)?;
        }
        Ok(pages)
    }

    /// Makes sure that all runs of `table` are in guest memory. Returns how many pages they have.
    fn checked(self, kind: SectionKind, table: &[u8]) -> Result<u128, ReceiveError> {
        let mut pages = 0;
        for run in runs(kind, table) {
            let run: PageRange = run.map_err(SectionError::from)?;
            self.0.layout().check(run)?;
            pages += u128::from(run.count());
        }
        Ok(pages)
    }
}
