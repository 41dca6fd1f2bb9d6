// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The runs of pages that the next section names, for a section that has no content: zero pages, discards.

use std::io;

use spec::PageRange;
use spec::stream::{MAX_SECTION_RUNS, RUN_BYTES, SectionKind, run_to_bytes, runs};
use spec::trace::Event;

use super::link::Link;
use crate::memory::ram::GuestRam;
use crate::report::trace::Trace;

/// About the most pages that a section names. The destination makes them zero at once, and reads nothing meanwhile.
const MOST_PAGES: u64 = 1 << 18;

/// Runs of the next section that has runs only.
pub(crate) struct RunTable {
    kind: SectionKind,
    pages: u64,
    last: Option<PageRange>,
    table: Vec<u8>,
}

impl RunTable {
    pub(crate) fn new(kind: SectionKind) -> Self {
        Self {
            kind,
            pages: 0,
            last: None,
            table: Vec::new(),
        }
    }

    /// Adds `run`, joined to the last one where they touch inside a region.
    pub(crate) fn push(&mut self, run: PageRange, ram: &GuestRam) {
        for piece in ram.pieces(run) {
            self.pages += piece.count();
            let joined = self
                .last
                .filter(|last| last.end() == piece.first() && !ram.begins_region(piece.first()));
            match joined.and_then(|last| PageRange::new(last.first(), last.count() + piece.count()))
            {
                Some(joined) => self.last = Some(joined),
                None => {
                    self.close_run();
                    self.last = Some(piece);
                }
            }
        }
    }

    /// No room for the runs of another word, where a section has about `most_bytes`.
    pub(crate) fn is_full(&self, most_bytes: u64) -> bool {
        self.table.len() / RUN_BYTES + 65 > MAX_SECTION_RUNS
            || self.table.len() as u64 >= most_bytes
            || self.pages >= MOST_PAGES
    }

    /// Sends them; it is empty then.
    pub(crate) fn flush(&mut self, link: &mut Link, trace: &Trace) -> io::Result<()> {
        self.close_run();
        if !self.table.is_empty() {
            link.out.section(self.kind, [&self.table])?;
            if trace.is_on() {
                self.record(trace);
            }
            self.table.clear();
            self.pages = 0;
        }
        Ok(())
    }

    fn record(&self, trace: &Trace) {
        for run in runs(self.kind, &self.table).flatten() {
            trace.record(match self.kind {
                SectionKind::Zero => Event::ZeroSent(run),
                _ => Event::DiscardSent(run),
            });
        }
    }

    fn close_run(&mut self) {
        if let Some(last) = self.last.take() {
            self.table.extend(run_to_bytes(last));
        }
    }
}
