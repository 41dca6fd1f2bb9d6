// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a machine in its process: where its guest is, and which commands are allowed therefore.
//!
//! ```text
//! receive: Awaited ──load──> TakingOver ──run──> Here ──> Ended
//!                              └─ link dies ─> Undecided ──operator──> Here
//! run:                                           Here ──> Ended
//! ```
//! | | migrate, cont | quit | quit that may end the guest | SIGTERM |
//! |---|---|---|---|---|
//! | `Awaited`: no guest has come, or only a part of one | refused | ends | ends | ends, 0 |
//! | `TakingOver`: the source may have given the guest up | refused | refused | refused | ends, 1 |
//! | `Here`: the guest runs or is held | done | refused | ends | ends, 1 |
//! | `Here`, and a migration is under way | refused | refused | refused | ends, 1 |
//! | `Here`, handed over, the destination did not confirm | refused | refused | ends | ends, 1 |
//! | `Undecided`: the link died before the hand-over came | refused | refused | ends | ends, 1 |
//! | `Here`, handed over before its memory, confirmed or not | refused | refused | ends | ends, 1 |
//! | `Here`, handed over | refused | ends | ends | ends, 0 |
//! | `Saving`: the guest is being saved as a half | refused | refused | refused | ends, 1 |
//! | `Ended`: the guest has powered off or crashed, or is in a half | refused | ends | ends | ends, 0 |
//!
//! So a process that ends with status 0 never takes a guest with it, unless a `quit` allowed that.

mod stake;

use std::sync::Arc;

use host_migrator::Owner;
use parking_lot::{Condvar, Mutex};

use super::outgoing::{Away, Outgoing};
use super::{MachineState, ProcessError};
use stake::Stake;

/// Where the guest is, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A guest is awaited, or its memory is arriving. The source owns it.
    Awaited,
    /// All of the guest has arrived, and the source may give it up at any moment.
    TakingOver,
    /// All of the guest has arrived, and it is not known whether the source has given it up.
    Undecided,
    /// The guest is here, unless a migration has taken it away ([`Away`]).
    Here { held: bool },
    /// The guest was stopped, and is being saved as the destination's half.
    Saving,
    /// The guest has ended.
    Ended,
}

/// Why a process ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// An operator said `quit`.
    Quit,
    /// A signal.
    Signal(&'static str),
    /// The guest did not arrive, or nobody can connect.
    NotReceived(ProcessError),
    /// The thread that receives the guest has panicked, and has printed why.
    ReceiverDied,
}

/// The life of one machine.
#[derive(Debug)]
pub(super) struct Life {
    state: Mutex<State>,
    ending: Condvar,
    /// Asked while `state` is locked, so that no migration begins between the answer and the step that depends on it.
    outgoing: Arc<Outgoing>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// A `quit` was accepted: from now on no guest is taken over or sent.
    leaving: bool,
    ending: Option<Ending>,
    ready: bool,
    failure: Option<String>,
    incoming: Option<String>,
}

impl Life {
    /// The life of a machine whose guest runs here.
    pub(super) fn with_guest(outgoing: Arc<Outgoing>) -> Self {
        Self::new(State::at(Stage::Here { held: false }), outgoing)
    }

    /// The life of a machine that waits for a guest at `address`.
    pub(super) fn awaiting(address: String, outgoing: Arc<Outgoing>) -> Self {
        let mut state = State::at(Stage::Awaited);
        state.incoming = Some(address);
        Self::new(state, outgoing)
    }

    fn new(state: State, outgoing: Arc<Outgoing>) -> Self {
        Self {
            state: Mutex::new(state),
            ending: Condvar::new(),
            outgoing,
        }
    }

    /// Called before the source is told that it may give the guest up. From then on `quit` is refused.
    ///
    /// # Errors
    /// A sentence, if a `quit` was accepted before.
    pub(super) fn take_over(&self) -> Result<(), String> {
        self.state.lock().take_over()
    }

    /// The source has given the guest up: the guest runs here, or is held.
    pub(super) fn arrived(&self, held: bool) {
        self.state.lock().arrived(held);
    }

    /// Lets a held guest run, by calling `run`.
    ///
    /// # Errors
    /// A sentence, if no guest is held here, or that of `run`.
    pub(super) fn cont(&self, run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        let mut state = self.state.lock();
        if state.stage == Stage::Undecided {
            return Err(DESTINATION_MAY_OWN.into());
        }
        let held = state.stage == Stage::Here { held: true };
        if state.leaving || !held || self.outgoing.away() != Away::No {
            return Err("no guest is held here".into());
        }
        run()?;
        state.stage = Stage::Here { held: false };
        Ok(())
    }

    /// The guest is to be saved as the destination's half: nobody may let it run, move it or end it meanwhile. Returns whether it is held.
    ///
    /// # Errors
    /// A sentence, if there is no guest here.
    pub(super) fn begin_half(&self) -> Result<bool, String> {
        let mut state = self.state.lock();
        state.may_leave(self.outgoing.away())?;
        let held = state.stage == Stage::Here { held: true };
        state.stage = Stage::Saving;
        Ok(held)
    }

    /// The guest was not saved after [`Life::begin_half`], and is here as before.
    pub(super) fn no_half(&self, held: bool) {
        let mut state = self.state.lock();
        if state.stage == Stage::Saving {
            state.stage = Stage::Here { held };
        }
    }

    /// The guest was saved, and stays stopped.
    pub(super) fn held_after_save(&self) {
        let mut state = self.state.lock();
        if state.stage.is_here() {
            state.stage = Stage::Here { held: true };
        }
    }

    /// The guest runs, whatever had stopped it.
    pub(super) fn runs(&self) {
        let mut state = self.state.lock();
        if state.stage.is_here() {
            state.stage = Stage::Here { held: false };
        }
    }

    /// Keeps the stopped guest although its arrival failed with `why`: it belongs to this side, or the owner is not known.
    pub(super) fn kept(&self, owner: Owner, why: &str) {
        self.state.lock().kept(owner, why);
    }

    /// Lets the guest run on that a failed migration has left stopped, by calling `run`.
    ///
    /// # Errors
    /// A sentence, if it is not certain that the guest is here, or that of `run`.
    pub(super) fn resume(&self, run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        let state = self.state.lock();
        state.may_leave(self.outgoing.away())?;
        run()
    }

    /// An operator decides that the guest, whose hand-over was not confirmed, is here. `take` lets it run on.
    ///
    /// # Errors
    /// A sentence, if this side knows who has the guest, or that of `take`.
    pub(super) fn source_owns(
        &self,
        take: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let state = self.state.lock();
        if self.outgoing.away() == Away::ServingUnconfirmed && !state.leaving {
            self.outgoing.give_up_unconfirmed()?;
        }
        match self.outgoing.away() {
            Away::Unconfirmed if !state.leaving && state.stage.is_here() => {
                // Whatever `take` can do: it is here from now on.
                let taken = take();
                self.outgoing.take_back();
                taken
            }
            Away::UnderWay => Err("the migration is still under way: use `lacuna cancel`".into()),
            Away::ServingUnconfirmed => Err("this machine was told to quit".into()),
            Away::HandedOver | Away::Serving => Err(
                "the destination has said that the guest runs there: it must not run here, too"
                    .into(),
            ),
            _ => Err(NOTHING_TO_DECIDE.into()),
        }
    }

    /// An operator decides that the guest, for which this destination got no hand-over, is here. `take` lets it run.
    ///
    /// # Errors
    /// A sentence, if this side knows who has the guest, or that of `take`.
    pub(super) fn destination_owns(
        &self,
        take: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let mut state = self.state.lock();
        match state.stage {
            Stage::Undecided if !state.leaving => {
                // Whatever `take` can do: it is here from now on.
                let taken = take();
                state.failure = None;
                state.stage = Stage::Here {
                    held: taken.is_err(),
                };
                taken
            }
            Stage::Awaited | Stage::TakingOver => Err(
                "the source has the guest, or is about to hand it over: wait for the end of the migration".into(),
            ),
            _ => Err(NOTHING_TO_DECIDE.into()),
        }
    }

    /// Calls `start`, if the guest is here to be migrated. The machine's state does not change meanwhile.
    ///
    /// # Errors
    /// A sentence, if the guest is not here, or that of `start`.
    pub(super) fn send_away(
        &self,
        start: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let state = self.state.lock();
        state.may_leave(self.outgoing.away())?;
        start()
    }

    /// # Errors
    /// A sentence, if no guest is here to be migrated.
    pub(super) fn check_guest_is_here(&self) -> Result<(), String> {
        self.send_away(|| Ok(()))
    }

    /// The guest has announced that its steady work has begun.
    pub(super) fn guest_is_ready(&self) {
        self.state.lock().ready = true;
    }

    /// The guest has ended.
    pub(super) fn guest_ended(&self, why: &str) {
        self.state.lock().ended(why);
    }

    /// Accepts a `quit`; [`Life::end`] must follow when the answer has been sent.
    ///
    /// # Errors
    /// A sentence, if a guest would be lost and `end_guest` does not allow that, or if the guest is changing hands.
    pub(super) fn quit(&self, end_guest: bool) -> Result<(), String> {
        let mut state = self.state.lock();
        state.quit(self.outgoing.away(), end_guest)
    }

    /// Whether the process loses a guest if it ends now.
    pub(super) fn has_guest(&self) -> bool {
        let state = self.state.lock();
        state.stake(self.outgoing.away()).is_some()
    }

    /// Ends the process. Only the first reason counts, and after an accepted `quit` a failure is no reason.
    pub(super) fn end(&self, why: Ending) {
        let mut state = self.state.lock();
        if state.leaving && !matches!(why, Ending::Quit | Ending::Signal(_)) {
            return;
        }
        state.ending.get_or_insert(why);
        self.ending.notify_all();
    }

    /// Waits until the process is to end.
    pub(super) fn wait(&self) -> Ending {
        let mut state = self.state.lock();
        loop {
            if let Some(ending) = state.ending.take() {
                return ending;
            }
            self.ending.wait(&mut state);
        }
    }

    /// The state as `lacuna status` shows it.
    pub(super) fn state(&self) -> MachineState {
        let state = self.state.lock();
        state.for_people(self.outgoing.away())
    }

    /// Where a guest is awaited.
    pub(super) fn incoming(&self) -> Option<String> {
        self.state.lock().incoming.clone()
    }

    /// Whether the guest's steady work has begun, and why the guest has ended, if it has.
    pub(super) fn of_guest(&self) -> (bool, Option<String>) {
        let state = self.state.lock();
        (state.ready, state.failure.clone())
    }
}

impl Stage {
    fn is_here(self) -> bool {
        matches!(self, Self::Here { .. })
    }
}

impl State {
    fn at(stage: Stage) -> Self {
        Self {
            stage,
            leaving: false,
            ending: None,
            ready: false,
            failure: None,
            incoming: None,
        }
    }

    fn take_over(&mut self) -> Result<(), String> {
        if self.leaving {
            return Err("this machine was told to quit".into());
        }
        self.stage = Stage::TakingOver;
        Ok(())
    }

    fn arrived(&mut self, held: bool) {
        self.incoming = None;
        self.ready = true;
        // A guest that ran may have ended already.
        if self.stage == Stage::TakingOver {
            self.stage = Stage::Here { held };
        }
    }

    fn kept(&mut self, owner: Owner, why: &str) {
        self.incoming = None;
        self.failure.get_or_insert_with(|| why.to_owned());
        self.stage = match owner {
            Owner::Here => Stage::Here { held: true },
            Owner::There | Owner::Undecided => Stage::Undecided,
        };
    }

    fn ended(&mut self, why: &str) {
        self.failure.get_or_insert_with(|| why.to_owned());
        self.stage = Stage::Ended;
    }

    fn quit(&mut self, away: Away, end_guest: bool) -> Result<(), String> {
        if let Some(stake) = self.stake(away)
            && (stake.moves() || !end_guest)
        {
            return Err(format!("{}: {}", stake.what(), stake.advice()));
        }
        self.leaving = true;
        Ok(())
    }

    fn for_people(&self, away: Away) -> MachineState {
        match (self.stage, away) {
            (_, Away::HandedOver | Away::Serving) => MachineState::HandedOver,
            (_, Away::Unconfirmed | Away::ServingUnconfirmed) | (Stage::Undecided, _) => {
                MachineState::Undecided
            }
            (Stage::Awaited | Stage::TakingOver, _) => MachineState::Incoming,
            (Stage::Here { held: true } | Stage::Saving, _) => MachineState::Held,
            (Stage::Here { held: false }, _) => MachineState::Running,
            (Stage::Ended, _) => MachineState::Ended,
        }
    }

    /// The guest that would be lost if the process ended now.
    fn stake(&self, away: Away) -> Option<Stake> {
        match (self.stage, away) {
            (Stage::Awaited | Stage::Ended, _) | (_, Away::HandedOver) => None,
            (Stage::TakingOver, _) => Some(Stake::Arriving),
            (Stage::Undecided, _) => Some(Stake::Undecided),
            (Stage::Saving, _) => Some(Stake::Saving),
            (_, Away::Serving) => Some(Stake::Serving),
            (_, Away::ServingUnconfirmed) => Some(Stake::Unconfirmed),
            (Stage::Here { .. }, Away::UnderWay) => Some(Stake::Leaving),
            (Stage::Here { .. }, Away::Unconfirmed) => Some(Stake::Unconfirmed),
            (Stage::Here { .. }, Away::No) => Some(Stake::Guest),
        }
    }

    fn may_leave(&self, away: Away) -> Result<(), String> {
        if self.leaving {
            return Err("this machine was told to quit".into());
        }
        let why = match (self.stage, away) {
            (Stage::Here { .. }, Away::No) => return Ok(()),
            (_, Away::UnderWay) => "a migration is under way already".into(),
            (_, Away::Unconfirmed | Away::ServingUnconfirmed) => SOURCE_MAY_OWN.into(),
            (_, Away::HandedOver | Away::Serving) => {
                "there is no guest here to migrate: it was handed over".into()
            }
            (Stage::Undecided, Away::No) => DESTINATION_MAY_OWN.into(),
            (Stage::Saving, Away::No) => {
                "the guest is being saved, as the destination's half".into()
            }
            (Stage::Awaited | Stage::TakingOver, Away::No) => {
                "there is no guest here to migrate: it has not arrived yet".into()
            }
            (Stage::Ended, Away::No) => format!(
                "there is no guest here to migrate: it has ended ({})",
                self.failure.as_deref().unwrap_or("no reason given")
            ),
        };
        Err(why)
    }
}

const SOURCE_MAY_OWN: &str = "the guest was handed over, and the destination did not confirm that it runs. Look there \
     with `lacuna status`: if the guest runs there, or is kept there, run it there (`lacuna cont --destination-owns`), and go on \
     with `lacuna recover` if it needs memory from here. \
     Only if that machine has ended, or you have ended it, use `lacuna resume --source-owns` here: a guest that runs in two \
     places destroys its disks";
const DESTINATION_MAY_OWN: &str = "all of the guest is here, but the link died before the source's last word. Look there \
     with `lacuna status`: if the guest runs there, end this machine (`lacuna quit --end-guest`). Only if that machine \
     shows `undecided`, or has ended, use `lacuna cont --destination-owns` here: a guest that runs in two places destroys \
     its disks";
const NOTHING_TO_DECIDE: &str =
    "there is nothing to decide: this side knows who has the guest, and `lacuna status` shows it";

#[cfg(test)]
mod tests;
