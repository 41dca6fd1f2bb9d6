// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What has happened in a migration: the arguments of `query-events`, and its answer.

use host_migrator::TimedEvent;
use serde::{Deserialize, Serialize};

/// What is known already. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct EventsArguments {
    /// The migration whose events are known, as in [`EventPage::migration`].
    pub migration: u64,
    /// The number of the last known event.
    pub after: u64,
}

/// The next events. There are more if this has [`EventPage::MOST`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventPage {
    /// Which migration away from this machine it is, from 1; 0 before the first. If it is not the known one, the events are those
    /// from its beginning.
    pub migration: u64,
    /// The events, in their order. Numbers are missing only before the first: of many events the oldest are forgotten.
    pub events: Vec<TimedEvent>,
}

impl EventPage {
    /// The most events of an answer.
    pub const MOST: usize = 256;

    /// What is known when this is.
    pub fn known(&self, before: EventsArguments) -> EventsArguments {
        let last = self.events.last().map(|event| event.number);
        let after = match before.migration == self.migration {
            true => before.after,
            false => 0,
        };
        EventsArguments {
            migration: self.migration,
            after: last.unwrap_or(after),
        }
    }
}
