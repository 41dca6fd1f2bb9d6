// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens in a migration, event by event, for those who watch it. Where QEMU has the event, name and data are QEMU's.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::report::stats::MigrationState;

/// The most events that are kept. Older ones are forgotten, and counted.
pub const MOST_EVENTS: usize = 4096;

/// Something that has happened in a migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    content = "data",
    rename_all = "SCREAMING_SNAKE_CASE",
    rename_all_fields = "kebab-case"
)]
#[non_exhaustive]
pub enum MigrationEvent {
    /// It has entered another state.
    Migration {
        /// The state.
        status: MigrationState,
        /// Why it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error_desc: Option<String>,
    },
    /// An iteration has begun: a pass over the pages that are to be sent.
    MigrationPass {
        /// Its number, from 1.
        pass: u32,
        /// Bytes of pages to be sent.
        remaining: u64,
    },
    /// The dirty logs were harvested while the guest ran.
    DirtySync {
        /// How many harvests there were, this one included.
        count: u64,
        /// In the middle of an iteration.
        background: bool,
        /// Pages that became dirty since the last harvest and are to be sent again.
        dirty_pages: u64,
        /// Bytes of pages to be sent.
        remaining: u64,
    },
    /// The guest is throttled more, or less.
    CpuThrottle {
        /// How much of its vCPUs' time it does not get.
        percentage: u8,
    },
    /// Each vCPU is held so that it dirties no more than this.
    VcpuDirtyLimit {
        /// Bytes of pages a second.
        bytes_per_second: u64,
    },
    /// The engine has decided how the migration goes on.
    Decision {
        /// What, and why.
        text: String,
    },
}

/// An event, and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// Its number in its migration, from 1, without a gap.
    pub number: u64,
    /// Milliseconds since the migration began. No change of the clock is in it.
    pub ms: u64,
    /// The time of day.
    pub timestamp: Timestamp,
    /// What has happened.
    #[serde(flatten)]
    pub event: MigrationEvent,
}

/// A time of day, as QMP writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: u64,
    /// And microseconds.
    pub microseconds: u32,
}

impl Timestamp {
    fn now() -> Self {
        let since = (SystemTime::now().duration_since(UNIX_EPOCH)).unwrap_or_default();
        Self {
            seconds: since.as_secs(),
            microseconds: since.subsec_micros(),
        }
    }
}

/// The events of a migration.
#[derive(Debug, Default)]
pub(crate) struct Events {
    kept: VecDeque<TimedEvent>,
    /// How many there were.
    count: u64,
}

impl Events {
    /// Adds what has happened this long after the migration began.
    pub(crate) fn add(&mut self, after: Duration, event: MigrationEvent) {
        if self.kept.len() == MOST_EVENTS {
            self.kept.pop_front();
        }
        self.count += 1;
        self.kept.push_back(TimedEvent {
            number: self.count,
            ms: after.as_millis() as u64,
            timestamp: Timestamp::now(),
            event,
        });
    }

    /// The first `most` of the kept events whose number is greater than `number`.
    pub(crate) fn after(&self, number: u64, most: usize) -> Vec<TimedEvent> {
        let known = self.kept.partition_point(|event| event.number <= number);
        self.kept.range(known..).take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(pass: u32) -> MigrationEvent {
        MigrationEvent::MigrationPass { pass, remaining: 0 }
    }

    #[test]
    fn an_event_is_written_as_qmp_writes_it() {
        let mut events = Events::default();
        let failed = MigrationEvent::Migration {
            status: MigrationState::PreSwitchover,
            error_desc: None,
        };
        events.add(Duration::from_millis(7), failed);
        let mut json = serde_json::to_value(&events.after(0, 9)[0]).unwrap();
        assert!(json["timestamp"]["seconds"].as_u64() > Some(0));
        json.as_object_mut().unwrap().remove("timestamp");
        let expected = serde_json::json!({
            "number": 1, "ms": 7, "event": "MIGRATION", "data": {"status": "pre-switchover"}
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn who_asks_in_pieces_gets_every_event_once() {
        let mut events = Events::default();
        (1..=10).for_each(|number| events.add(Duration::ZERO, pass(number)));
        let (mut seen, mut known) = (Vec::new(), 0);
        loop {
            let some = events.after(known, 3);
            let Some(last) = some.last() else { break };
            known = last.number;
            seen.extend(some.into_iter().map(|event| event.number));
        }
        assert_eq!(seen, (1..=10).collect::<Vec<_>>());
        assert!(events.after(u64::MAX, 3).is_empty());
    }

    #[test]
    fn the_newest_of_many_events_are_kept() {
        let mut events = Events::default();
        (0..2 * MOST_EVENTS as u32).for_each(|number| events.add(Duration::ZERO, pass(number)));
        let kept = events.after(0, usize::MAX);
        assert_eq!(kept.len(), MOST_EVENTS);
        assert_eq!(kept[0].number, MOST_EVENTS as u64 + 1);
    }
}
