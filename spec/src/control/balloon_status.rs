// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of the balloon, for people.

/// The balloon's target, its size, and counters since the device started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Feature bits that the device offers.
    pub offered: u64,
    /// Feature bits that guest and device agreed on; 0 before the driver is up.
    pub negotiated: u64,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Whether the rings run.
    pub running: bool,
    /// Pages (4 KiB) that were set as target.
    pub wanted_pages: u64,
    /// Pages that the guest is asked to put into the balloon: the target, but at most its memory.
    pub target_pages: u64,
    /// Pages that the guest says are in the balloon.
    pub actual_pages: u64,
    /// Pages that the device saw go into the balloon since the front end connected, and not come out again.
    pub ballooned_pages: u64,
    /// Pages of guest memory, in all regions.
    pub memory_pages: u64,
    /// Regions of guest memory.
    pub regions: u64,
    /// Milliseconds between two requests for statistics; 0: the device does not ask.
    pub statistics_interval_ms: u64,
    /// Pages inflated.
    pub inflated_pages: u64,
    /// Pages deflated.
    pub deflated_pages: u64,
    /// Pages reported free.
    pub reported_pages: u64,
    /// Bytes given back to the host.
    pub discarded_bytes: u64,
    /// System calls that gave memory back.
    pub discards: u64,
    /// Such calls that failed.
    pub failed_discards: u64,
    /// Pages and ranges outside guest memory.
    pub out_of_range: u64,
    /// Invalid buffers.
    pub bad_buffers: u64,
}

impl BalloonStatus {
    pub(super) const WORDS: usize = 19;

    pub(super) fn to_words(self) -> [u64; Self::WORDS] {
        [
            self.offered,
            self.negotiated,
            u64::from(self.connected),
            u64::from(self.running),
            self.wanted_pages,
            self.target_pages,
            self.actual_pages,
            self.ballooned_pages,
            self.memory_pages,
            self.regions,
            self.statistics_interval_ms,
            self.inflated_pages,
            self.deflated_pages,
            self.reported_pages,
            self.discarded_bytes,
            self.discards,
            self.failed_discards,
            self.out_of_range,
            self.bad_buffers,
        ]
    }

    pub(super) fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let truth = |word: u64| match word {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        Some(Self {
            offered: words[0],
            negotiated: words[1],
            connected: truth(words[2])?,
            running: truth(words[3])?,
            wanted_pages: words[4],
            target_pages: words[5],
            actual_pages: words[6],
            ballooned_pages: words[7],
            memory_pages: words[8],
            regions: words[9],
            statistics_interval_ms: words[10],
            inflated_pages: words[11],
            deflated_pages: words[12],
            reported_pages: words[13],
            discarded_bytes: words[14],
            discards: words[15],
            failed_discards: words[16],
            out_of_range: words[17],
            bad_buffers: words[18],
        })
    }
}
