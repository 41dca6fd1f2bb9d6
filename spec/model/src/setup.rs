// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who takes part, and how many steps each may take. These bounds make the state space finite.

/// How dirty bits are cleared after they were read. Clearing arms their pages again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// All at once, right after they were read.
    AtOnce,
    /// Piece by piece, as with `KVM_DIRTY_LOG_INITIALLY_SET` and `KVM_CLEAR_DIRTY_LOG`. A piece is one page.
    PageByPage,
}

/// Who takes part, and how many steps each may take.
///
/// Every step that could repeat has a bound, so every run of the model ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Pages of the guest, at most [`MAX_PAGES`](crate::pages::MAX_PAGES).
    pub pages: u8,
    /// Moves of the guest: writing a page, freeing it, hinting it, reusing it and so on.
    pub moves: u8,
    /// Rounds of a migration before the guest is paused; each round has an epoch of its own.
    pub rounds: u8,
    /// Background harvests in mid-round, each with a new epoch, over all rounds of a migration.
    pub background: u8,
    /// Early harvests in mid-round, which leave the epoch open, over all rounds of a migration. (Only where dirty bits
    /// are cleared at once.)
    pub early: u8,
    /// How often a migration can fail or be cancelled. After each failure it can be tried again with a new destination.
    pub failures: u8,
    /// Channels to the destination. A single one keeps the order, so in the model it delivers at once.
    pub channels: u8,
    /// The destination may be on the source's host. Each migration may then lend it the memory itself, instead of sending pages.
    pub local: bool,
    /// When a round begins, the migrator asks for holes: pages without memory, which read as zero. It sends them as zero
    /// without reading them. (Only where dirty bits are cleared at once.)
    pub holes: bool,
    /// Records that make a page zero wait in a table and are sent later, on the first channel.
    pub tables: bool,
    /// Pages that are hinted after they were sent are discarded at the destination.
    pub late_discards: bool,
    /// The vCPUs log their writes in a ring with so many entries, which may be emptied at any time; 0: in a bitmap. (Only where dirty bits
    /// are cleared at once.)
    pub ring: u8,
    /// How dirty bits are cleared.
    pub clearing: Clearing,
    /// The host uses hints.
    pub hints: bool,
    /// The guest has a driver for the hint queue, which may be arbitrarily slow.
    pub driver: bool,
    /// The guest has an agent that reads its page flags.
    pub agent: bool,
    /// The hint of a page also covers half of the next page, whose other half may be in use.
    pub ragged: bool,
    /// The guest fills pages with zeros when it frees them, and relies on that.
    pub init_on_free: bool,
    /// The guest reports free pages or puts pages into the balloon, and the device discards their memory.
    pub reporting: bool,
    /// Writes of a vhost-user back end, which logs each write some time later.
    pub back_end_writes: u8,
    /// Writes of the VMM.
    pub own_writes: u8,
    /// How often the balloon device can die and be restarted.
    pub deaths: u8,
    /// How often the migrator can stop waiting for the device's answer.
    pub impatience: u8,
}

impl Setup {
    /// Two pages and a guest with a driver; only the vCPUs write.
    pub const SMALL: Self = Self {
        pages: 2,
        moves: 5,
        rounds: 2,
        background: 0,
        early: 0,
        failures: 0,
        channels: 1,
        local: false,
        holes: false,
        tables: false,
        late_discards: false,
        ring: 0,
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
