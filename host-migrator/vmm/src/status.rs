// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare guest's status page.

use host_migrator::{GuestRam, RamError};
use spec::bare::{STATUS_GPA, STATUS_MAGIC, StatusWord};
use spec::{PAGE_SIZE, PageRange};

/// The guest's status words at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestStatus {
    words: [u64; StatusWord::COUNT],
}

impl GuestStatus {
    /// Reads them; `None` if the guest is not up yet, or is not the bare guest.
    ///
    /// # Errors
    /// [`RamError`] if there is no memory at [`STATUS_GPA`], or its file cannot be read.
    pub fn read(ram: &GuestRam) -> Result<Option<Self>, RamError> {
        const FIRST: u64 = STATUS_GPA / PAGE_SIZE;
        let mut page = [0; PAGE_SIZE as usize];
        if let Some(range) = PageRange::new(FIRST, 1) {
            // Whoever asks for the status must not wait for a page that is missing.
            ram.peek(range, &mut page)?;
        }
        let mut words = [0; StatusWord::COUNT];
        for (word, bytes) in words.iter_mut().zip(page.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let status = Self { words };
        Ok((status.word(StatusWord::Magic) == STATUS_MAGIC).then_some(status))
    }

    /// A status word.
    pub fn word(&self, word: StatusWord) -> u64 {
        self.words[word as usize]
    }
}
