// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who takes part in a save, and what may go wrong. The bounds make the state space finite.

/// Who takes part, and what may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSetup {
    /// Pages of the guest, at most [`MAX_PAGES`](crate::pages::MAX_PAGES).
    pub pages: u8,
    /// How often the guest writes a page or gives one up.
    pub moves: u8,
    /// Savers that write the same file: 1 or 2.
    pub savers: u8,
    /// Threads of a saver that write pages: 1 or 2. A single one keeps the order, so in the model it writes at once.
    pub writers: u8,
    /// The saver may reserve blocks before it knows which pages are in the snapshot.
    pub reserves: bool,
    /// The new snapshot overwrites the old one where it is, instead of replacing it under its name. (One saver.)
    pub in_place: bool,
    /// The power may be cut.
    pub cut: bool,
    /// How many savers may be killed.
    pub kills: u8,
    /// How many writes the disk may lose. It says so at the next sync.
    pub lost_writes: u8,
    /// How many blocks of a complete snapshot may rot.
    pub rot: u8,
}

impl FileSetup {
    /// One saver, one page that does not change, and nothing that goes wrong.
    pub const SMALLEST: Self = Self {
        pages: 1,
        moves: 0,
        savers: 1,
        writers: 1,
        reserves: false,
        in_place: false,
        cut: false,
        kills: 0,
        lost_writes: 0,
        rot: 0,
    };

    /// Whether it matters what is on the disk already.
    pub(crate) const fn disk_matters(&self) -> bool {
        self.cut || self.lost_writes > 0
    }
}
