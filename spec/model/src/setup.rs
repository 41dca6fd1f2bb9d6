// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who takes part, and how much each may do: the bounds that make the state space finite.

/// How dirty bits that were read are cleared, which arms their pages again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// All in one call, right after they were read.
    AtOnce,
    /// Piece by piece, as with `KVM_DIRTY_LOG_INITIALLY_SET` and `KVM_CLEAR_DIRTY_LOG`. A piece is one page.
    PageByPage,
}

/// Who takes part and how much.
///
/// Everything that can happen often is counted, so every run of the model ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Pages of the guest, at most [`MAX_PAGES`](crate::pages::MAX_PAGES).
    pub pages: u8,
    /// Moves of the guest: writing a page, freeing it, hinting it, taking it again ...
    pub moves: u8,
    /// Rounds of a migration before the guest is paused; each round has an epoch of its own.
    pub rounds: u8,
    /// Background harvests in mid-round, each with a new epoch, over all rounds of a migration.
    pub background: u8,
    /// Early harvests in mid-round, which leave the epoch open, over all rounds of a migration. (Where dirty bits
    /// are cleared at once.)
    pub early: u8,
    /// Times that a migration fails or is cancelled. It can be tried again after each, to another destination.
    pub failures: u8,
    /// Channels to the destination. One delivers in order, so that it delivers at once makes no difference.
    pub channels: u8,
    /// The migrator asks for holes when a round begins: pages without memory, which read as zero. It takes them for
    /// zeros without a look. (Where dirty bits are cleared at once.)
    pub holes: bool,
    /// Records that make a page zero wait in a table, and leave together. (Where there is one channel.)
    pub tables: bool,
    /// How dirty bits are cleared.
    pub clearing: Clearing,
    /// The host uses hints.
    pub hints: bool,
    /// The guest has a driver for the hint queue. It can be as slow as it likes.
    pub driver: bool,
    /// The guest has an agent that reads its page flags.
    pub agent: bool,
    /// A hint of a page covers half of the next page, too; the other half of that one may be in use.
    pub ragged: bool,
    /// The guest fills pages with zeros when it frees them, and relies on that.
    pub init_on_free: bool,
    /// The guest reports free pages or puts them into the balloon, and the device discards their memory.
    pub reporting: bool,
    /// Writes of a vhost-user back end. It logs a write some time after it.
    pub back_end_writes: u8,
    /// Writes of the VMM.
    pub own_writes: u8,
    /// Times that the balloon device dies and starts anew.
    pub deaths: u8,
    /// Times that the migrator does not wait for the device's answer.
    pub impatience: u8,
}

impl Setup {
    /// Two pages, a guest with a driver, and the vCPUs' writes.
    pub const SMALL: Self = Self {
        pages: 2,
        moves: 5,
        rounds: 2,
        background: 0,
        early: 0,
        failures: 0,
        channels: 1,
        holes: false,
        tables: false,
        clearing: Clearing::AtOnce,
        hints: true,
        driver: true,
        agent: false,
        ragged: false,
        init_on_free: false,
        reporting: false,
        back_end_writes: 0,
        own_writes: 0,
        deaths: 0,
        impatience: 0,
    };
}
