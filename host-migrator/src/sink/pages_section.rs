// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Puts sections about pages together.

use std::io;

use spec::PageRange;
use spec::stream::{
    CompressedPrefix, PagesPrefix, SECTION_HEADER_BYTES, SectionKind, run_to_bytes,
};

use super::carried::Carried;
use crate::compression::{Compression, Packer};
use crate::wire::sections::SectionWriter;

/// Sends one section after the other on a connection.
#[derive(Debug, Default)]
pub(crate) struct PagesSection {
    /// The table of the section that is being sent, and what is before it.
    table: Vec<u8>,
    packer: Option<Packer>,
    carried: Carried,
}

impl PagesSection {
    /// Compresses pages so.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(crate) fn compressed(compression: Compression) -> io::Result<Self> {
        Ok(Self {
            packer: Packer::new(compression)?,
            ..Self::default()
        })
    }

    /// Bytes on the wire of a section with so many runs and pages, which are not compressed.
    pub(crate) fn bytes(runs: usize, pages: u64) -> u64 {
        let prefix = PagesPrefix {
            runs: runs as u32,
            pages: pages as u32,
        };
        SECTION_HEADER_BYTES as u64 + prefix.payload_bytes()
    }

    /// The pages that it has sent.
    pub(crate) fn carried(&self) -> Carried {
        self.carried
    }

    /// Sends the pages of `runs`, whose content is `content` in the same order, compressed if that is worth it.
    pub(crate) fn pages(
        &mut self,
        out: &mut SectionWriter,
        runs: &[PageRange],
        content: &[u8],
    ) -> io::Result<()> {
        let plain = PagesPrefix {
            runs: runs.len() as u32,
            pages: runs.iter().map(|run| run.count()).sum::<u64>() as u32,
        };
        self.carried.pages += u64::from(plain.pages);
        self.table.clear();
        let packed = self.packer.as_mut().and_then(|packer| packer.pack(content));
        let Some(packed) = packed else {
            self.table.extend(plain.to_bytes());
            put(&mut self.table, runs);
            return out.section(SectionKind::Pages, [&self.table, content]);
        };
        let prefix = CompressedPrefix {
            method: packed.method,
            runs: plain.runs,
            pages: plain.pages,
            content_crc: crc32fast::hash(content),
        };
        self.carried.compressed_pages += u64::from(plain.pages);
        self.carried.compressed_bytes += packed.bytes.len() as u64;
        self.table.extend(prefix.to_bytes());
        put(&mut self.table, runs);
        out.section(SectionKind::CompressedPages, [&self.table, packed.bytes])
    }

    /// Sends a section of `kind` that is nothing but `runs`.
    pub(crate) fn runs(
        &mut self,
        out: &mut SectionWriter,
        kind: SectionKind,
        runs: &[PageRange],
    ) -> io::Result<()> {
        self.table.clear();
        put(&mut self.table, runs);
        out.section(kind, [&self.table])
    }
}

fn put(table: &mut Vec<u8>, runs: &[PageRange]) {
    table.extend(runs.iter().flat_map(|run| run_to_bytes(*run)));
}
