// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Puts sections about pages together.

use std::io;

use spec::PageRange;
use spec::stream::{PagesPrefix, SECTION_HEADER_BYTES, SectionKind, run_to_bytes};

use crate::wire::sections::SectionWriter;

/// The table of the section that is being sent.
#[derive(Debug, Default)]
pub(super) struct PagesSection(Vec<u8>);

impl PagesSection {
    /// Bytes on the wire of a section with so many runs and pages.
    pub(super) fn bytes(runs: usize, pages: u64) -> u64 {
        let prefix = PagesPrefix {
            runs: runs as u32,
            pages: pages as u32,
        };
        SECTION_HEADER_BYTES as u64 + prefix.payload_bytes()
    }

    /// Sends the pages of `runs`, whose content is `content` in the same order.
    pub(super) fn pages(
        &mut self,
        out: &mut SectionWriter,
        runs: &[PageRange],
        content: &[u8],
    ) -> io::Result<()> {
        let prefix = PagesPrefix {
            runs: runs.len() as u32,
            pages: runs.iter().map(|run| run.count()).sum::<u64>() as u32,
        };
        self.0.clear();
        self.0.extend(prefix.to_bytes());
        self.put(runs);
        out.section(SectionKind::Pages, [&self.0, content])
    }

    /// Sends a section of `kind` that is nothing but `runs`.
    pub(super) fn runs(
        &mut self,
        out: &mut SectionWriter,
        kind: SectionKind,
        runs: &[PageRange],
    ) -> io::Result<()> {
        self.0.clear();
        self.put(runs);
        out.section(kind, [&self.0])
    }

    fn put(&mut self, runs: &[PageRange]) {
        self.0
            .extend(runs.iter().flat_map(|run| run_to_bytes(*run)));
    }
}
