// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory that is moved into.

use std::fs::File;
use std::time::Instant;

use host_migrator::{GuestRam, MigrationBitmap};

use super::BenchError;
use super::content::{Content, new_memory};
use crate::compare::{Verdict, compare_memory};

/// Memory of the size of the content.
#[derive(Debug)]
pub(super) struct Destination {
    ram: GuestRam,
    file: File,
    /// How long it took to give it all its pages; none: it has no page yet.
    populated_ms: Option<f64>,
}

impl Destination {
    /// New memory as large as `content`; `populated`: all its pages are there, and zero.
    ///
    /// # Errors
    /// [`BenchError`] if it cannot be made.
    pub(super) fn new(content: &Content, populated: bool) -> Result<Self, BenchError> {
        let (ram, file) = new_memory(content.pages().bytes())?;
        let began = Instant::now();
        if populated {
            ram.populate()?;
        }
        Ok(Self {
            ram,
            file,
            populated_ms: populated.then(|| began.elapsed().as_secs_f64() * 1000.0),
        })
    }

    /// The memory.
    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The memory file that it is.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// How long it took to give it all its pages, in milliseconds.
    pub(super) fn populated_ms(&self) -> Option<f64> {
        self.populated_ms
    }

    /// Compares every page with `content`.
    ///
    /// # Errors
    /// [`BenchError`] if memory cannot be read.
    pub(super) fn verdict(&self, content: &Content) -> Result<Verdict, BenchError> {
        let none_skipped = MigrationBitmap::new(content.ram().bitmap_pages());
        Ok(compare_memory(
            content.ram(),
            &self.ram,
            &none_skipped,
            None,
        )?)
    }
}
