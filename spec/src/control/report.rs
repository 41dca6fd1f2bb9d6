// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The results of an epoch, and the state of the device.

use crate::hint_map::HintPhase;

/// The results of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochReport {
    /// The epoch's number.
    pub epoch: u64,
    /// How far the guest came before the epoch was closed.
    pub phase: HintPhase,
    /// Hint buffers taken (scatter-gather entries).
    pub hints: u64,
    /// Pages newly set in the hint map.
    pub pages: u64,
    /// Those of them that the guest's agent told.
    pub agent_pages: u64,
    /// Buffers dropped for a wrong id, or because no round was running.
    pub stale: u64,
    /// Buffers without a usable page: outside memory, without a whole page, or of length zero.
    pub rejected: u64,
}

/// The state of the device, and totals since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Feature bits that guest and device agreed on; 0 before the driver is up.
    pub features: u64,
    /// The open epoch, 0 if none.
    pub epoch: u64,
    /// How far the guest is.
    pub phase: HintPhase,
    /// The configuration space's `free_page_hint_cmd_id`.
    pub command_id: u32,
    /// The guest's page poison value. Not 0: hints are refused, see `free-page-hinting.md`.
    pub poison: u32,
    /// Epochs opened.
    pub epochs: u64,
    /// Hint buffers taken.
    pub hints: u64,
    /// Pages newly set, summed over epochs.
    pub pages: u64,
    /// Those of them that the guest's agent told.
    pub agent_pages: u64,
    /// Buffers dropped as stale.
    pub stale: u64,
    /// Buffers outside guest memory (counted once, also when a part was inside and used).
    pub out_of_range: u64,
    /// Buffers without one whole page.
    pub partial: u64,
    /// Buffers of length 0.
    pub zero_length: u64,
    /// Command buffers that are not 4 bytes long, or have an unknown id.
    pub bad_commands: u64,
    /// Descriptor chains that could not be walked to their end.
    pub broken_chains: u64,
}

impl DeviceStatus {
    pub(super) const WORDS: usize = 15;

    pub(super) fn to_words(self) -> [u64; Self::WORDS] {
        [
            self.features,
            self.epoch,
            self.phase as u64,
            u64::from(self.command_id),
            u64::from(self.poison),
            self.epochs,
            self.hints,
            self.pages,
            self.agent_pages,
            self.stale,
            self.out_of_range,
            self.partial,
            self.zero_length,
            self.bad_commands,
            self.broken_chains,
        ]
    }

    pub(super) fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        Some(Self {
            features: words[0],
            epoch: words[1],
            phase: HintPhase::from_raw(words[2])?,
            command_id: u32::try_from(words[3]).ok()?,
            poison: u32::try_from(words[4]).ok()?,
            epochs: words[5],
            hints: words[6],
            pages: words[7],
            agent_pages: words[8],
            stale: words[9],
            out_of_range: words[10],
            partial: words[11],
            zero_length: words[12],
            bad_commands: words[13],
            broken_chains: words[14],
        })
    }
}
