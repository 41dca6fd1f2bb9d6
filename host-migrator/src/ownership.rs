// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who owns the guest: a record on each side. Every hand-over, failure and decision of an operator goes through it.
//!
//! A guest may run only on a side whose record says [`Owner::Here`]. If the link dies in the middle of the hand-over, neither
//! side can know whether the hand-over took place. Then both say [`Owner::Undecided`] and keep the guest, and an operator
//! who has looked at both decides with [`OwnershipRecord::claim`].

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use spec::file::{Half, Side};
use spec::trace::Event;

use crate::report::trace::Trace;

/// Who owns the guest, as far as one side knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// This side.
    Here,
    /// The other side: the guest does not run here.
    There,
    /// Unknown. The guest does not run here until an operator decides.
    Undecided,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here => "here",
            Self::There => "there",
            Self::Undecided => "undecided",
        })
    }
}

/// The number of a migration's session, which both sides know; 0 before the first. Written in hexadecimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Session(pub u64);

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Session {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl From<Session> for String {
    fn from(session: Session) -> Self {
        session.to_string()
    }
}

impl TryFrom<String> for Session {
    type Error = ParseIntError;

    fn try_from(text: String) -> Result<Self, ParseIntError> {
        text.parse()
    }
}

/// The content of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ownership {
    /// The migration's session, the same on both sides.
    pub session: Session,
    /// How often the guest has changed hands. Of two records of one session, the one with the greater number is the
    /// newer.
    pub number: u64,
    /// The owner.
    pub owner: Owner,
}

impl Ownership {
    /// What `side` of this hand-over has left, for a file.
    pub fn half(&self, side: Side) -> Half {
        Half {
            side,
            session: self.session.0,
            number: self.number,
        }
    }
}

/// Why an operator's decision is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// There is nothing to decide.
    #[error("there is nothing to decide: the guest is on this side already")]
    Here,
    /// The other side has the guest, and has said so.
    #[error("the other side has the guest and has said so: the guest must not run on both sides")]
    There,
}

/// The record of one side. Clones are the same record.
#[derive(Clone, Debug)]
pub struct OwnershipRecord(Arc<Mutex<Record>>);

#[derive(Debug)]
struct Record {
    says: Ownership,
    /// Whether the other side certainly owns the guest: it has said so, or has not offered the guest.
    certain: bool,
}

impl OwnershipRecord {
    /// The record of a guest that is started on this side.
    pub fn here() -> Self {
        Self::new(Owner::Here)
    }

    /// The record of a side that waits for a guest.
    pub fn there() -> Self {
        Self::new(Owner::There)
    }

    fn new(owner: Owner) -> Self {
        let says = Ownership {
            session: Session::default(),
            number: 0,
            owner,
        };
        let certain = true;
        Self(Arc::new(Mutex::new(Record { says, certain })))
    }

    /// The record's current content.
    pub fn get(&self) -> Ownership {
        self.0.lock().says
    }

    /// An operator decides that this side owns the guest. The guest may then run here, and must never run on the other
    /// side. Only somebody who can see both sides can decide this.
    ///
    /// # Errors
    /// [`ClaimError`] if this side knows the owner.
    pub fn claim(&self, trace: &Trace) -> Result<(), ClaimError> {
        let mut record = self.0.lock();
        match record.says.owner {
            Owner::Here => Err(ClaimError::Here),
            Owner::There => Err(ClaimError::There),
            Owner::Undecided => {
                trace.record(Event::Decided);
                record.says.owner = Owner::Here;
                record.says.number += 1;
                Ok(())
            }
        }
    }

    /// A migration with this session begins. Returns the guest's number.
    pub(crate) fn begin(&self, session: u64) -> u64 {
        let mut record = self.0.lock();
        record.says.session = Session(session);
        record.says.number
    }

    /// A guest with this number arrives. The source still owns it.
    pub(crate) fn await_guest(&self, session: u64, number: u64) {
        let says = Ownership {
            session: Session(session),
            number,
            owner: Owner::There,
        };
        *self.0.lock() = Record {
            says,
            certain: true,
        };
    }

    /// The source is about to hand the guest over.
    pub(crate) fn give(&self) {
        self.change(Owner::There, 1);
    }

    /// The destination is about to say that it is ready: from now on the guest may be handed over to it.
    pub(crate) fn offer(&self) {
        self.change(Owner::There, 1);
    }

    /// The hand-over was not sent: the source still owns the guest.
    pub(crate) fn keep(&self) {
        self.change(Owner::Here, -1);
    }

    /// The destination has said that the guest runs there.
    pub(crate) fn given(&self) {
        self.0.lock().certain = true;
    }

    /// This destination knows for certain that the source keeps its guest.
    pub(crate) fn declined(&self) {
        self.change(Owner::There, -1);
        self.0.lock().certain = true;
    }

    /// The hand-over has arrived: this destination owns the guest.
    pub(crate) fn accept(&self) {
        self.change(Owner::Here, 0);
    }

    /// Whether it is certain that the other side has the guest, if this side does not own it. While a source waits to go on with a postcopy
    /// whose hand-over was not confirmed, it is not.
    pub fn is_certain(&self) -> bool {
        self.0.lock().certain
    }

    /// The migration is over. A side that does not know the owner now says `undecided`.
    pub(crate) fn settle(&self) -> Owner {
        let mut record = self.0.lock();
        if record.says.owner == Owner::There && !record.certain {
            record.says.owner = Owner::Undecided;
        }
        record.says.owner
    }

    fn change(&self, owner: Owner, by: i64) {
        let mut record = self.0.lock();
        record.says.owner = owner;
        record.says.number = record.says.number.saturating_add_signed(by);
        record.certain = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides() -> (OwnershipRecord, OwnershipRecord) {
        let (source, destination) = (OwnershipRecord::here(), OwnershipRecord::there());
        destination.await_guest(7, source.begin(7));
        destination.offer();
        source.give();
        (source, destination)
    }

    fn says(record: &OwnershipRecord) -> (u64, Owner) {
        let says = record.get();
        assert_eq!(says.session, Session(7));
        (says.number, says.owner)
    }

    #[test]
    fn a_guest_that_was_handed_over_is_there_on_one_side_and_here_on_the_other() {
        let (source, destination) = sides();
        destination.accept();
        source.given();
        assert_eq!(source.settle(), Owner::There);
        assert_eq!(destination.settle(), Owner::Here);
        assert_eq!(says(&source), (1, Owner::There));
        assert_eq!(says(&destination), (1, Owner::Here));
        let trace = Trace::default();
        assert_eq!(source.claim(&trace), Err(ClaimError::There));
        assert_eq!(destination.claim(&trace), Err(ClaimError::Here));
    }

    #[test]
    fn where_the_link_died_in_the_hand_over_an_operator_decides_for_one_side() {
        let (source, destination) = sides();
        let trace = Trace::default();
        // Not while the hand-over may still arrive.
        assert_eq!(source.claim(&trace), Err(ClaimError::There));
        assert_eq!(source.settle(), Owner::Undecided);
        assert_eq!(destination.settle(), Owner::Undecided);
        destination.claim(&trace).unwrap();
        assert_eq!(says(&destination), (2, Owner::Here));
        assert_eq!(says(&source), (1, Owner::Undecided));
    }

    #[test]
    fn a_source_that_kept_its_guest_owns_it_and_its_destination_knows() {
        let (source, destination) = sides();
        source.keep();
        destination.declined();
        assert_eq!(source.settle(), Owner::Here);
        assert_eq!(destination.settle(), Owner::There);
        assert_eq!(says(&source), (0, Owner::Here));
        assert_eq!(says(&destination), (0, Owner::There));
    }

    #[test]
    fn a_session_is_written_so_that_any_reader_of_json_keeps_all_of_its_bits() {
        let json = serde_json::to_string(&Session(u64::MAX)).unwrap();
        assert_eq!(json, "\"ffffffffffffffff\"");
        assert_eq!(
            serde_json::from_str::<Session>(&json).unwrap(),
            Session(u64::MAX)
        );
    }
}
