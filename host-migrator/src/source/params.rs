// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the operator may choose about a migration.

use std::num::NonZeroU64;
use std::time::Duration;

use spec::stream::MAX_CHANNELS;

use super::postcopy::joining;
pub use super::postcopy::start::{NotAStart, PostcopyStart};
use crate::compression::Compression;
use crate::convergence::background_sync::SYNC_INTERVAL;
use crate::convergence::controller::Goals;
use crate::convergence::throttle::ThrottleParams;
use crate::report::page_source::PageSources;
use crate::rule::clause::Clauses;
use crate::source::clock::Clock;

/// How to migrate. Names follow QEMU's parameters where they mean the same.
///
/// ```
/// use host_migrator::MigrationParams;
///
/// let params = MigrationParams::default().with_max_bandwidth(100 << 20).with_max_rounds(30);
/// assert_eq!(params.max_rounds, Some(30));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MigrationParams {
    /// Bytes a second to send at most while the guest runs; none: as fast as the channel takes them.
    /// The last pages, sent while the guest is stopped, know no limit.
    pub max_bandwidth: Option<u64>,
    /// Channels that carry the pages of large rounds, besides the control connection, at most [`MAX_CHANNELS`]; with 0 or 1
    /// everything goes over the control connection.
    pub multifd_channels: u32,
    /// How pages are compressed on their way. A section that does not shrink by an eighth is sent as it is.
    pub compression: Compression,
    /// The guest is stopped when the downtime is expected to be no longer than this. Where all that does not depend on
    /// memory takes longer already, it is a limit for the memory alone.
    pub downtime_limit: Duration,
    /// What the guest's stop takes besides memory: stopping and saving the machine here, loading it there. What was
    /// learnt of this machine is better than the default.
    pub besides_memory: Duration,
    /// Which knowledge of pages that need not be sent is used.
    pub sources: PageSources,
    /// Stop the guest after this many rounds, however much is pending; none: go on until it fits
    /// [`MigrationParams::downtime_limit`], or a cancel.
    pub max_rounds: Option<u32>,
    /// When all is in a snapshot file and the guest is still telling what is free: how long it may go on, so that this need not stay in
    /// the file. None: as long as it has taken until then, if at its pace the guest is expected to end by then.
    pub wait_for_hints: Option<Duration>,
    /// A peer that takes and gives nothing for this long has gone. Long enough for what socket buffers
    /// hold to pass a slow link.
    pub peer_timeout: Duration,
    /// How long the switchover may take, from the moment before the guest is stopped until it is handed over.
    /// After that the migration has failed and the guest runs on at the source, whatever the destination still
    /// takes or gives. None: twice the downtime that was expected when the guest was stopped, or
    /// [`MigrationParams::downtime_limit`] if that is more, and five seconds for the machine's state.
    pub switchover_timeout: Option<Duration>,
    /// How often a round looks into the vCPUs' dirty log while it is being sent, about: a page that is found
    /// written before it was copied is not sent again for it. Each look costs the guest a fault for every page
    /// that it goes on writing; 0 looks at the end of a round alone.
    pub early_harvests: u32,
    /// Harvest the dirty logs in the middle of a round, too, whenever about so many pages have been sent, found to be zero
    /// or skipped since the last harvest. None: at the end of a round alone.
    pub sync_pages: Option<u64>,
    /// Throttle a guest that writes too fast; none: never. It needs a [`Throttle`](crate::Throttle) of the VMM.
    pub auto_converge: Option<ThrottleParams>,
    /// Limit how much memory each vCPU of a guest that writes too fast makes dirty, in bytes a second; none: never. It needs a
    /// [`Throttle`](crate::Throttle) that knows how much each has dirtied. It takes the place of [`MigrationParams::auto_converge`].
    pub vcpu_dirty_limit: Option<NonZeroU64>,
    /// Leave it to the engine how the migration of a busy guest comes to its end: whether it throttles the guest, how far, and whether
    /// it allows a longer downtime. [`MigrationParams::auto_converge`] and [`MigrationParams::downtime_limit`] mean nothing then.
    pub goals: Option<Goals>,
    /// Harvest the dirty logs in the middle of a round, the first excepted, whenever so much time has passed since the last
    /// harvest: then the throttle need not wait for the round's end. None: never. It is not done where the throttle cannot rise:
    /// without [`MigrationParams::auto_converge`], [`MigrationParams::vcpu_dirty_limit`] and [`MigrationParams::goals`], or at its
    /// maximum.
    pub sync_interval: Option<Duration>,
    /// The clock of these decisions.
    pub clock: Clock,
    /// Lend the destination the memory itself instead of sending pages: for a destination on this host that is connected over
    /// a unix socket, and guest memory in memory files ([`GuestMemory::files`](crate::GuestMemory::files)). No page is sent,
    /// so rounds, limits, channels and sources mean nothing then.
    pub local: bool,
    /// Hand the guest over before its memory ([`PostcopyStart`]). The destination must be able to do that: it is refused before any
    /// memory is sent. None: all memory is sent before.
    pub postcopy: Option<PostcopyStart>,
    /// Bytes a second for pages that are sent after the hand-over and that nobody waits for. None: all that the link has.
    pub max_postcopy_bandwidth: Option<u64>,
    /// Keep a map of each round for the report: which part of memory was sent, skipped or sent in vain.
    pub map_rounds: bool,
    /// Clauses of the rule that are broken on purpose: only in builds with `--cfg clause_switches`.
    #[cfg(clause_switches)]
    pub switched_off: std::collections::BTreeSet<crate::rule::clause::Clause>,
}

/// The default number of early harvests in a round. If pages are written evenly over a round, `n` early harvests leave
/// one in `2 (n + 1)` of them to be sent twice for nothing: with eight one in 18, with none every second one.
pub const EARLY_HARVESTS: u32 = 8;

/// The assumed time to stop and save a machine that was never stopped before.
pub const STOP_AND_SAVE: Duration = Duration::from_millis(2);
/// The assumed [`MigrationParams::besides_memory`] of a machine of which nothing was measured.
pub const BESIDES_MEMORY: Duration = Duration::from_millis(5);

impl Default for MigrationParams {
    fn default() -> Self {
        Self {
            max_bandwidth: None,
            multifd_channels: 1,
            compression: Compression::None,
            downtime_limit: Duration::from_millis(300),
            besides_memory: BESIDES_MEMORY,
            sources: PageSources::ALL,
            max_rounds: None,
            wait_for_hints: None,
            peer_timeout: Duration::from_secs(30),
            switchover_timeout: None,
            early_harvests: EARLY_HARVESTS,
            sync_pages: None,
            auto_converge: None,
            vcpu_dirty_limit: None,
            goals: None,
            sync_interval: Some(SYNC_INTERVAL),
            clock: Clock::default(),
            local: false,
            postcopy: None,
            max_postcopy_bandwidth: None,
            map_rounds: false,
            #[cfg(clause_switches)]
            switched_off: std::collections::BTreeSet::new(),
        }
    }
}

/// Each sets the field of its name.
impl MigrationParams {
    /// Sets [`MigrationParams::max_bandwidth`].
    #[must_use]
    pub fn with_max_bandwidth(self, max_bandwidth: impl Into<Option<u64>>) -> Self {
        Self {
            max_bandwidth: max_bandwidth.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::multifd_channels`].
    #[must_use]
    pub fn with_multifd_channels(self, multifd_channels: u32) -> Self {
        Self {
            multifd_channels,
            ..self
        }
    }

    /// Sets [`MigrationParams::compression`].
    #[must_use]
    pub fn with_compression(self, compression: Compression) -> Self {
        Self {
            compression,
            ..self
        }
    }

    /// Sets [`MigrationParams::downtime_limit`].
    #[must_use]
    pub fn with_downtime_limit(self, downtime_limit: Duration) -> Self {
        Self {
            downtime_limit,
            ..self
        }
    }

    /// Sets [`MigrationParams::besides_memory`].
    #[must_use]
    pub fn with_besides_memory(self, besides_memory: Duration) -> Self {
        Self {
            besides_memory,
            ..self
        }
    }

    /// Sets [`MigrationParams::sources`].
    #[must_use]
    pub fn with_sources(self, sources: PageSources) -> Self {
        Self { sources, ..self }
    }

    /// Sets [`MigrationParams::max_rounds`].
    #[must_use]
    pub fn with_max_rounds(self, max_rounds: impl Into<Option<u32>>) -> Self {
        Self {
            max_rounds: max_rounds.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::wait_for_hints`].
    #[must_use]
    pub fn with_wait_for_hints(self, wait: impl Into<Option<Duration>>) -> Self {
        Self {
            wait_for_hints: wait.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::peer_timeout`].
    #[must_use]
    pub fn with_peer_timeout(self, peer_timeout: Duration) -> Self {
        Self {
            peer_timeout,
            ..self
        }
    }

    /// Sets [`MigrationParams::switchover_timeout`].
    #[must_use]
    pub fn with_switchover_timeout(self, switchover_timeout: impl Into<Option<Duration>>) -> Self {
        Self {
            switchover_timeout: switchover_timeout.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::early_harvests`].
    #[must_use]
    pub fn with_early_harvests(self, early_harvests: u32) -> Self {
        Self {
            early_harvests,
            ..self
        }
    }

    /// Sets [`MigrationParams::sync_pages`].
    #[must_use]
    pub fn with_sync_pages(self, sync_pages: impl Into<Option<u64>>) -> Self {
        Self {
            sync_pages: sync_pages.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::auto_converge`].
    #[must_use]
    pub fn with_auto_converge(self, auto_converge: impl Into<Option<ThrottleParams>>) -> Self {
        Self {
            auto_converge: auto_converge.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::vcpu_dirty_limit`].
    #[must_use]
    pub fn with_vcpu_dirty_limit(self, limit: impl Into<Option<NonZeroU64>>) -> Self {
        Self {
            vcpu_dirty_limit: limit.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::goals`].
    #[must_use]
    pub fn with_goals(self, goals: impl Into<Option<Goals>>) -> Self {
        Self {
            goals: goals.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::sync_interval`].
    #[must_use]
    pub fn with_sync_interval(self, sync_interval: impl Into<Option<Duration>>) -> Self {
        Self {
            sync_interval: sync_interval.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::clock`].
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Sets [`MigrationParams::local`].
    #[must_use]
    pub fn with_local(self, local: bool) -> Self {
        Self { local, ..self }
    }

    /// Sets [`MigrationParams::postcopy`].
    #[must_use]
    pub fn with_postcopy(self, postcopy: impl Into<Option<PostcopyStart>>) -> Self {
        Self {
            postcopy: postcopy.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::max_postcopy_bandwidth`].
    #[must_use]
    pub fn with_max_postcopy_bandwidth(
        self,
        max_postcopy_bandwidth: impl Into<Option<u64>>,
    ) -> Self {
        Self {
            max_postcopy_bandwidth: max_postcopy_bandwidth.into(),
            ..self
        }
    }

    /// Sets [`MigrationParams::map_rounds`].
    #[must_use]
    pub fn with_map_rounds(self, map_rounds: bool) -> Self {
        Self { map_rounds, ..self }
    }

    /// Breaks clauses of the rule on purpose.
    #[cfg(clause_switches)]
    #[must_use]
    pub fn with_switched_off(
        self,
        switched_off: std::collections::BTreeSet<crate::rule::clause::Clause>,
    ) -> Self {
        Self {
            switched_off,
            ..self
        }
    }
}

/// What may be changed while a migration runs. Each is the field of [`MigrationParams`] of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tuning {
    /// [`MigrationParams::max_bandwidth`].
    pub max_bandwidth: Option<u64>,
    /// [`MigrationParams::downtime_limit`]. It is looked at when a round ends.
    pub downtime_limit: Duration,
    /// [`MigrationParams::auto_converge`]. Without, the guest gets its full speed back.
    pub auto_converge: Option<ThrottleParams>,
    /// [`MigrationParams::vcpu_dirty_limit`].
    pub vcpu_dirty_limit: Option<NonZeroU64>,
    /// [`MigrationParams::goals`].
    pub goals: Option<Goals>,
    /// [`MigrationParams::sync_interval`].
    pub sync_interval: Option<Duration>,
}

/// What a healthy destination may take to load the guest, besides the time for the pages.
const LOAD_LIMIT: Duration = Duration::from_secs(5);

impl MigrationParams {
    /// Those of these parameters that may be changed while the migration runs.
    pub fn tuning(&self) -> Tuning {
        Tuning {
            max_bandwidth: self.max_bandwidth,
            downtime_limit: self.downtime_limit,
            auto_converge: self.auto_converge,
            vcpu_dirty_limit: self.vcpu_dirty_limit,
            goals: self.goals,
            sync_interval: self.sync_interval,
        }
    }

    /// How long the switchover may take if the downtime is `expected` to be so long.
    pub(crate) fn switchover_time(&self, expected: Duration) -> Duration {
        self.switchover_timeout.unwrap_or_else(|| {
            // Nothing was measured that would tell.
            let unknown = expected == Duration::MAX;
            let expected = if unknown { self.peer_timeout } else { expected };
            let pages = expected.saturating_mul(2).max(self.downtime_limit);
            pages.saturating_add(LOAD_LIMIT)
        })
    }

    /// Whether the guest is asked which pages are free.
    pub(crate) fn asks_the_guest(&self) -> bool {
        !self.local && self.sources.tellers().any()
    }

    /// How many channels are to join.
    pub(crate) fn channels(&self) -> u32 {
        match self.multifd_channels {
            _ if self.local => 0,
            0 | 1 => 0,
            channels => channels.min(MAX_CHANNELS),
        }
    }

    /// How many lanes are to join, for a postcopy.
    pub(crate) fn lanes(&self) -> u32 {
        match self.postcopy {
            Some(_) if !self.local => joining::count(self.channels()),
            _ => 0,
        }
    }

    #[cfg(clause_switches)]
    pub(crate) fn clauses(&self) -> Clauses {
        Clauses::without(&self.switched_off)
    }

    #[cfg(not(clause_switches))]
    pub(crate) fn clauses(&self) -> Clauses {
        Clauses::default()
    }
}
