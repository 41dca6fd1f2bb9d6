// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The status of a migration while it runs ([`MigrationStatus`]), and its report afterwards ([`MigrationReport`]). Names are
//! those of QEMU's `query-migrate` where the meaning is the same.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::memory::bitmap::MigrationBitmap;
use crate::report::page_source::PagesBySource;
use crate::report::round_map::RoundMaps;

/// The state of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MigrationState {
    /// None has been started.
    #[default]
    None,
    /// Greeting the destination, arming the dirty logs.
    Setup,
    /// Sending memory while the guest runs.
    Active,
    /// The guest is being stopped and the last pages are sent.
    PreSwitchover,
    /// The state of vCPUs and devices is sent, and the guest handed over.
    Device,
    /// The guest runs at the destination, and the rest of its memory is sent.
    PostcopyActive,
    /// The same, and the connection has broken: another one is waited for. The guest never runs here again.
    PostcopyPaused,
    /// The same, and both sides are about to go on over another connection.
    PostcopyRecover,
    /// Only of a copy: the guest runs on here, and the copy is being made to last.
    Syncing,
    /// The guest runs at the destination; of a copy: it is complete.
    Completed,
    /// The migration failed; the guest runs here.
    Failed,
    /// The migration was cancelled; the guest runs here.
    Cancelled,
    /// The guest was handed over, and the destination did not confirm that it runs. It never runs here.
    HandedOverUnconfirmed,
    /// The guest was handed over without all of its memory, and the rest was given up here, or saved as this side's half. It never runs
    /// here.
    HandedOverInPart,
}

impl MigrationState {
    /// Whether the migration has ended, in success or failure.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Self::Completed
                | Self::Failed
                | Self::Cancelled
                | Self::HandedOverUnconfirmed
                | Self::HandedOverInPart
        )
    }
}

/// The status of a migration. Times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MigrationStatus {
    /// Where it stands.
    pub status: MigrationState,
    /// Time since its start.
    pub total_time: u64,
    /// Time from the start until the dirty logs were armed.
    pub setup_time: u64,
    /// How long the guest was stopped; 0 before it was.
    pub downtime: u64,
    /// How long the guest would be stopped now, all parts of the downtime included; absent before the link was
    /// measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected_downtime: Option<u64>,
    /// The round, from 1; 0 before the first.
    pub round: u32,
    /// How much of its vCPUs' time the guest does not get, in percent, so that it writes less.
    #[serde(default)]
    pub cpu_throttle_percentage: u8,
    /// The most that each vCPU may make dirty now, in bytes a second; absent while that is not limited.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vcpu_dirty_limit: Option<u64>,
    /// Everything travels in TLS.
    #[serde(default)]
    pub tls: bool,
    /// The guest may be handed over before its memory.
    #[serde(default)]
    pub postcopy_allowed: bool,
    /// Pages that the destination has asked for, because somebody waited for them.
    #[serde(default)]
    pub postcopy_requests: u64,
    /// How often a postcopy went on after its connection had broken.
    #[serde(default)]
    pub recoveries: u64,
    /// Memory.
    pub ram: RamStatus,
    /// Compression; absent without.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub compression: Option<CompressionStatus>,
    /// Free page hints.
    pub hints: HintStatus,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_desc: Option<String>,
}

/// The memory of a [`MigrationStatus`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RamStatus {
    /// Bytes on the wire so far, heartbeats included.
    pub transferred: u64,
    /// Bytes of pages still to be sent.
    pub remaining: u64,
    /// Bytes of the guest's memory.
    pub total: u64,
    /// Of the bytes on the wire, those while the guest ran.
    #[serde(default)]
    pub precopy_bytes: u64,
    /// Of the bytes on the wire, those while it was stopped.
    #[serde(default)]
    pub downtime_bytes: u64,
    /// Bytes of memory lent to a destination on this host, instead of sending pages.
    #[serde(default)]
    pub lent_bytes: u64,
    /// Of these, bytes on channels besides the control connection.
    #[serde(default)]
    pub multifd_bytes: u64,
    /// Bytes on each of these channels.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub bytes_by_channel: Vec<u64>,
    /// The throughput of each of these channels lately, in megabits a second; absent before it was measured.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub mbps_by_channel: Vec<f64>,
    /// Zero pages found.
    pub duplicate: u64,
    /// Pages sent with content.
    pub normal: u64,
    /// Their bytes.
    pub normal_bytes: u64,
    /// Pages a second that the guest dirtied in the last round.
    pub dirty_pages_rate: u64,
    /// The throughput in megabits a second; absent before it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mbps: Option<f64>,
    /// Harvests of the dirty logs while the guest ran, at the end of a round and in the middle of one.
    pub dirty_sync_count: u64,
    /// Rounds begun.
    #[serde(default)]
    pub iteration_count: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// The throughput in pages a second; absent before it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pages_per_second: Option<u64>,
}

/// The compression of a [`MigrationStatus`]. Pages that would not have shrunk were sent as they are, and are not counted here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CompressionStatus {
    /// The method: `lz4` or `zstd`.
    pub method: Cow<'static, str>,
    /// The level of `zstd`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub zstd_level: Option<u8>,
    /// Pages that were sent compressed.
    pub pages: u64,
    /// The bytes that these were compressed to.
    pub compressed_size: u64,
    /// How many times smaller these pages have become; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub compression_rate: Option<f64>,
}

/// The hints of a [`MigrationStatus`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct HintStatus {
    /// Hints are being used.
    pub active: bool,
    /// Epochs opened.
    pub epochs: u64,
    /// Pages that were not sent because the guest hinted them.
    pub skipped: u64,
    /// Pages whose hint came after they had been sent.
    pub too_late: u64,
    /// Pages made zero at the destination again.
    pub discarded: u64,
    /// Pages that were holes of the memory files.
    pub holes: u64,
    /// Pages left out so far, by source.
    pub pages_by_source: PagesBySource,
    /// Milliseconds that the sender held back for hints that came faster than it sends.
    pub held_back: u64,
    /// Why hints are not used, or no longer used, although they were asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lost: Option<String>,
}

/// One round of a [`MigrationReport`]. The last is the one with the guest stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RoundStats {
    /// Its number, from 1.
    pub round: u32,
    /// Pages to be sent when it began.
    pub pending_before: u64,
    /// Pages sent with content.
    pub pages_sent: u64,
    /// Of these, pages whose content was at the destination already (older).
    pub pages_resent: u64,
    /// Pages found to be zero: by reading them, or in later rounds because a balloon device had given them back.
    pub pages_zero: u64,
    /// Pages not sent because the guest hinted them.
    pub pages_hinted: u64,
    /// Pages hinted in this round, for the first time since the destination got their content.
    pub pages_hinted_too_late: u64,
    /// Pages left out, by source. (Holes are left out before the first round and count in it.)
    pub pages_by_source: PagesBySource,
    /// [`RoundStats::pages_hinted_too_late`], by source.
    pub too_late_by_source: PagesBySource,
    /// Pages left out before, or discarded, that are to be sent after all, as the guest has written them since: by why they
    /// were left out.
    pub back_dirty_by_source: PagesBySource,
    /// Hinted pages made zero at the destination: of those not sent, the ones whose older content it had; and, for files, those
    /// hinted in this round after they were sent.
    pub pages_discarded: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Milliseconds, harvest included.
    pub ms: f64,
    /// Of these, held back for hints.
    pub held_back_ms: f64,
    /// Pages that its harvests brought, the one at its end and those in the middle: they are to be sent again. Each counts
    /// once a harvest, however many logs have it. 0 in the last round, in which nobody writes.
    pub dirty_harvested: u64,
    /// Pages that were written in this round before they were copied, as far as early harvests have found them:
    /// they need not be sent again for it.
    #[serde(default)]
    pub pages_written_before_copy: u64,
    /// Harvests in the middle of it, each of which opened another epoch.
    #[serde(default)]
    pub syncs: u64,
}

/// The steps of the downtime, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DowntimeSteps {
    /// Stopping the vCPUs.
    pub stop_vcpus: f64,
    /// Stopping the devices.
    pub stop_devices: f64,
    /// The last harvest.
    pub last_harvest: f64,
    /// Sending the last pages.
    pub ram: f64,
    /// Saving and sending the machine's state.
    pub state: f64,
    /// From the commit to the destination's Ready: it checks, and loads the state.
    pub commit: f64,
    /// From the hand-over to the destination's Running.
    pub hand_over: f64,
}

impl DowntimeSteps {
    /// The whole downtime.
    pub fn sum(&self) -> f64 {
        self.stop_vcpus
            + self.stop_devices
            + self.last_harvest
            + self.ram
            + self.state
            + self.commit
            + self.hand_over
    }
}

/// The parts of the downtime that were expected when the guest was stopped. Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ExpectedSteps {
    /// Stopping, saving and loading the machine: what that took before, or an assumption.
    pub machine: f64,
    /// The last harvest: what the one before took.
    pub harvest: f64,
    /// The destination's answers to the commit and to the hand-over.
    pub answers: f64,
    /// Finding, copying and looking at the pages that were left.
    pub look: f64,
    /// Their way. Over several channels they are looked at meanwhile, so the longer of the two counts.
    pub way: f64,
}

/// The memory that a destination on the same host got instead of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct LentMemory {
    /// Memory files, one for each region.
    pub files: u32,
    /// Bytes of guest memory in them.
    pub bytes: u64,
}

/// What was done after the hand-over of a guest that went before its memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PostcopyReport {
    /// Milliseconds from the hand-over until the destination had everything.
    pub ms: f64,
    /// Pages that were still to be sent at the hand-over.
    pub pages_promised: u64,
    /// Pages sent with content after it. After a break some are sent again.
    pub pages_sent: u64,
    /// Pages that the destination has asked for.
    pub requests: u64,
    /// Bytes sent after the hand-over.
    pub bytes: u64,
    /// How often it went on after a break.
    pub recoveries: u64,
}

/// A migration that has completed. Times are milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MigrationReport {
    /// All bytes that the source sent; with TLS, before they were encrypted.
    pub wire_bytes: u64,
    /// Everything travelled in TLS.
    #[serde(default)]
    pub tls: bool,
    /// Channels that carried pages; with 1 everything went over the control connection.
    pub channels: u32,
    /// Of [`MigrationReport::wire_bytes`], those on each channel besides the control connection.
    pub bytes_by_channel: Vec<u64>,
    /// The memory that was lent instead of sending pages, in a local hand-over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent: Option<LentMemory>,
    /// Time from the start to the destination's Running.
    pub total_ms: f64,
    /// Time from the start until the dirty logs were armed.
    pub setup_ms: f64,
    /// How long the guest was stopped.
    pub downtime_ms: f64,
    /// The downtime that was expected when the guest was stopped.
    pub expected_downtime_ms: f64,
    /// Its parts; none if the link was not measured, or the guest went before its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<ExpectedSteps>,
    /// The parts of the downtime.
    pub downtime: DowntimeSteps,
    /// Rounds, the last one, with the guest stopped, included.
    #[serde(default)]
    pub iteration_count: u64,
    /// Harvests of the dirty logs while the guest ran, at the end of a round and in the middle of one.
    #[serde(default)]
    pub dirty_sync_count: u64,
    /// The most that the guest was throttled, in percent of its time.
    #[serde(default)]
    pub throttle_max_percent: u8,
    /// What was decided so that the migration ends, in words, if it was left to the engine ([`Goals`](crate::Goals)).
    #[serde(default)]
    pub decisions: Vec<String>,
    /// Pages of the guest's memory.
    pub pages_total: u64,
    /// Pages left out before the first round as holes of the memory files, for whatever reason.
    pub pages_holes: u64,
    /// The sums over all rounds (`round` is their number, `pending-before` the first's).
    pub totals: RoundStats,
    /// The rounds, the first and the last [`MOST_ROUNDS`]` / 2` of them if there were more. `totals` counts all.
    pub rounds: Vec<RoundStats>,
    /// Compression; absent without.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub compression: Option<CompressionStatus>,
    /// What came after the hand-over, if the guest went before its memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub postcopy: Option<PostcopyReport>,
    /// Free page hints.
    pub hints: HintStatus,
    /// Where in memory the rounds' work was, if that was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maps: Option<RoundMaps>,
    /// Pages whose latest content was not sent because the guest hinted them: they read as zero at the
    /// destination.
    #[serde(skip)]
    pub skipped: Option<Arc<MigrationBitmap>>,
}

/// The most rounds that a report keeps. A migration may take more.
pub const MOST_ROUNDS: usize = 1024;

impl MigrationReport {
    /// Adds a round. One in the middle makes room for it, if there are many.
    pub(crate) fn add_round(&mut self, round: RoundStats) {
        if self.rounds.len() == MOST_ROUNDS {
            self.rounds.remove(MOST_ROUNDS / 2);
        }
        self.rounds.push(round);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_many_rounds_keeps_the_first_and_the_last() {
        let mut report = MigrationReport::default();
        let many = 3 * MOST_ROUNDS as u32;
        for round in 1..=many {
            report.add_round(RoundStats {
                round,
                ..RoundStats::default()
            });
        }
        let half = MOST_ROUNDS as u32 / 2;
        let kept: Vec<u32> = report.rounds.iter().map(|round| round.round).collect();
        let expected: Vec<u32> = (1..=half).chain(many - half + 1..=many).collect();
        assert_eq!(kept, expected);
    }
}
