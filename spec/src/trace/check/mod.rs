// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks a trace against the rule.
//!
//! The checker replays the events on its own copy of the migration bitmap, the hints and the destination's memory, which
//! it makes only from the records. It names the first event that the rule does not allow, and the clause. A trace is
//! about one guest, which may move over many hosts.
//!
//! | module | what it is |
//! |---|---|
//! | `attempt` | one migration away from a host |
//! | `hints` | its epochs |
//! | `sending` | what it does with pages |
//! | `owner` | who runs the guest |
//! | `discards` | memory that a device gives back |
//! | `lent` | memory that two hosts map in a local hand-over |
//! | `pages` | sets of pages |
//! | `verdict` | the result |

mod attempt;
mod discards;
mod hints;
mod lent;
mod owner;
mod pages;
mod sending;
#[cfg(test)]
mod tests;
mod verdict;

use alloc::collections::BTreeMap;

use super::{Event, Reader, Record};
use attempt::Attempt;
use discards::Discards;
use lent::Lent;
use owner::Owner;
pub use verdict::{Breach, Clause, Summary, Verdict};

/// A trace as far as it has been replayed.
#[derive(Debug, Default)]
pub struct Checker {
    owner: Owner,
    lent: Lent,
    attempts: BTreeMap<u16, Attempt>,
    discards: BTreeMap<u16, Discards>,
    summary: Summary,
}

/// Checks the trace in `reader` against the rule.
pub fn check(reader: &Reader<'_>) -> Verdict {
    check_records(reader.records(), reader.dropped())
}

/// As [`check`], for records in memory, the last `dropped` of which are missing.
pub fn check_records(records: impl IntoIterator<Item = Option<Record>>, dropped: u64) -> Verdict {
    let mut checker = Checker::default();
    let mut missing = dropped;
    for (index, record) in (0..).zip(records) {
        let Some(record) = record else {
            missing += 1;
            continue;
        };
        if let Err((clause, why)) = checker.replay(&record) {
            return Verdict::Broken(Breach {
                index,
                record,
                clause,
                why,
            });
        }
    }
    if missing > 0 {
        Verdict::Incomplete { missing }
    } else {
        Verdict::Holds(checker.summary)
    }
}

/// Which clause an event breaks, and how.
type Broken = (Clause, alloc::string::String);

impl Checker {
    fn replay(&mut self, record: &Record) -> Result<(), Broken> {
        let host = record.actor.host;
        self.summary.events += 1;
        self.owner.replay(host, record.event)?;
        self.lent.replay(host, record.event)?;
        let discards = self.discards.entry(host).or_default();
        discards.replay(record.event, self.attempts.get_mut(&host))?;
        match record.event {
            Event::Begin(logs) => {
                if self.attempts.contains_key(&host) {
                    return Err((Clause::Order, "the last migration has not ended".into()));
                }
                self.attempts.insert(host, Attempt::new(logs)?);
            }
            Event::End(outcome) => {
                if let Some(attempt) = self.attempts.remove(&host) {
                    attempt.end(outcome)?;
                    self.summary.add(&attempt, outcome);
                }
            }
            event => {
                if let Some(attempt) = self.attempts.get_mut(&host) {
                    attempt.replay(event)?;
                }
            }
        }
        Ok(())
    }
}
