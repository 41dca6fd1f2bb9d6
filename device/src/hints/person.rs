// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A round of hints that a person has started. No migration asked for it, and its map belongs to the device.

use std::time::{Duration, Instant};

use spec::control::{EpochReport, RoundEnd};

/// How long a round lasts by default. The guest is without its free memory in this time, and the client that started
/// the round may have been killed.
pub const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// The last round that a person has started, and the time limit of the next ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct PersonRound {
    limit: Option<Duration>,
    /// When the round is ended, unless that happens earlier.
    pub(super) until: Option<Instant>,
    pub(super) ended: RoundEnd,
    /// Its results.
    pub(super) report: EpochReport,
}

impl PersonRound {
    /// No round yet.
    pub(super) fn none() -> Self {
        Self {
            limit: Some(ROUND_LIMIT),
            until: None,
            ended: RoundEnd::default(),
            report: EpochReport::default(),
        }
    }

    /// Sets the time limit of the next rounds; `None` for no limit.
    pub(super) fn set_limit(&mut self, limit: Option<Duration>) {
        self.limit = limit;
    }

    /// A round begins.
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self {
            limit: self.limit,
            until: self.limit.and_then(|limit| now.checked_add(limit)),
            ..Self::none()
        };
    }
}
