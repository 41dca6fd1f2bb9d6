// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The result of a check.

use alloc::string::String;
use core::fmt;

use super::attempt::Attempt;
use crate::trace::Record;
use crate::trace::event::Outcome;

/// The part of the rule that an event breaks. The numbers are those of `spec/free-page-hinting.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Clause {
    /// 1: every page is armed before an epoch opens.
    ArmFirst,
    /// 2: a hint takes no memory away from the guest.
    HintDiscardsNothing,
    /// 3: an epoch is closed before a harvest, and its hints end with it.
    CloseBeforeHarvest,
    /// 4: a harvest reads every log, and the pages that it brings are sent.
    HarvestEverything,
    /// 5: no hint is used once the guest is stopped; at the end logs stop and the guest is told DONE.
    NoHintAfterPause,
    /// 6: after a migration that fails the guest runs, and the next migration sends everything.
    PutBack,
    /// 7: a hinted page reads as zero at the destination.
    ReadsAsZero,
    /// A page is claimed before it is copied, and every claimed page is sent.
    ClaimBeforeCopy,
    /// The versions of a page arrive in the order in which they were copied.
    OnePageOneOrder,
    /// Memory that is lent to another host is changed only by the guest's owner.
    LentMemory,
    /// One host owns the guest, and only the owner runs it.
    OneOwner,
    /// Not a clause: these events cannot follow each other.
    Order,
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ArmFirst => "clause 1, arm first",
            Self::HintDiscardsNothing => "clause 2, a hint discards nothing",
            Self::CloseBeforeHarvest => "clause 3, close before harvest",
            Self::HarvestEverything => "clause 4, harvest everything",
            Self::NoHintAfterPause => "clause 5, no hint after the pause",
            Self::PutBack => "clause 6, put back",
            Self::ReadsAsZero => "clause 7, a hinted page reads as zero",
            Self::ClaimBeforeCopy => "claim before copy",
            Self::OnePageOneOrder => "one page, one order",
            Self::LentMemory => "lent memory is its owner's",
            Self::OneOwner => "one owner",
            Self::Order => "order of events",
        })
    }
}

/// The first event that the rule does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Its number in the trace, from 0.
    pub index: usize,
    /// The event.
    pub record: Record,
    /// The clause that it breaks.
    pub clause: Clause,
    /// How, in a sentence.
    pub why: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "event {} ({}) breaks {}: {}",
            self.index, self.record, self.clause, self.why
        )
    }
}

/// Counts of a trace's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events.
    pub events: u64,
    /// Migrations that have ended.
    pub migrations: u64,
    /// Of these, completed ones.
    pub completed: u64,
    /// Epochs that were opened in them.
    pub epochs: u64,
    /// Harvests.
    pub harvests: u64,
    /// Pages hinted. A page that is hinted twice counts twice.
    pub hinted: u64,
    /// Pages skipped as hinted. A page that is skipped twice counts twice.
    pub skipped: u64,
    /// Pages copied. A page that is copied twice counts twice.
    pub copied: u64,
}

impl Summary {
    pub(super) fn add(&mut self, attempt: &Attempt, outcome: Outcome) {
        self.migrations += 1;
        self.completed += u64::from(outcome == Outcome::Completed);
        self.epochs += attempt.hints.opened;
        self.harvests += attempt.harvests;
        self.hinted += attempt.hints.pages;
        self.skipped += attempt.sending.skipped;
        self.copied += attempt.sending.copied;
    }
}

/// The verdict on a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every event is allowed.
    Holds(Summary),
    /// An event breaks the rule.
    Broken(Breach),
    /// No event breaks the rule, but records are missing, so the trace proves nothing.
    Incomplete {
        /// How many.
        missing: u64,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds(summary) => write!(
                f,
                "the rule holds: {} events, {} migrations ({} completed), {} epochs, {} harvests, \
                 {} pages hinted, {} skipped, {} copied",
                summary.events,
                summary.migrations,
                summary.completed,
                summary.epochs,
                summary.harvests,
                summary.hinted,
                summary.skipped,
                summary.copied
            ),
            Self::Broken(breach) => breach.fmt(f),
            Self::Incomplete { missing } => {
                write!(
                    f,
                    "incomplete: {missing} records are missing, so the trace proves nothing"
                )
            }
        }
    }
}
