// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A round of hints that a person has started: no migration asked for it, and its map is the device's own.

use std::time::{Duration, Instant};

use spec::control::{EpochReport, RoundEnd};

/// How long a round lasts by default. Meanwhile the guest is without its free memory, and the client that started the
/// round may have been killed.
pub const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// The round that a person has started last, and how long the next ones may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct PersonRound {
    limit: Option<Duration>,
    /// When it is ended if nobody has.
    pub(super) until: Option<Instant>,
    pub(super) ended: RoundEnd,
    /// Its results.
    pub(super) report: EpochReport,
}

impl PersonRound {
    /// There was no round yet.
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
