// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of source, destination, guest and network.

use super::clause::PostcopyClause;
use super::state::{CONTENT, FOREIGN, HandOver, Link, Postcopy, PostcopyState, SourceSide, Wrong};
use crate::pages::{ModelPages, Page};

/// A step of one participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PostcopyAction {
    /// The source gives the guest up, with the list of what is promised.
    HandOver,
    /// The hand-over arrives, and the destination runs the guest.
    TakeOver,
    /// The guest reads a page, or waits for it.
    Read(Page),
    /// The guest writes a page that is there.
    Write(Page),
    /// The guest gives a page up, and the balloon discards it.
    GiveUp(Page),
    /// The destination reads the fault at a page: it answers with zeros, or asks the source.
    Fault(Page),
    /// A request arrives: the source sends the page if it has not done so.
    Request(Page),
    /// The source sends a page that nobody has asked for.
    Push(Page),
    /// A page arrives.
    Arrive(Page),
    /// The connection breaks, and what is in its buffers is lost.
    Break,
    /// The source runs the guest.
    RunAtSource,
    /// The destination answers a fault with zeros because there is no connection.
    AnswerAlone(Page),
    /// Another connection: the destination says what it has.
    Greet,
    /// The source has heard what the destination has, and goes on.
    GoOn,
    /// The source of another guest connects.
    Stranger,
    /// The destination says that nothing is missing, and the source ends.
    Complete,
    /// The source ends because it has sent everything.
    Release,
    /// The source saves what it has into a file, and ends.
    Save,
    /// The destination opens the file, and goes on from it.
    OpenFile,
    /// The destination opens a file that the source of another guest has saved, and goes on from it.
    OpenOther,
    /// The destination reads a page from the file.
    Load(Page),
    /// The destination's process ends.
    Die,
    /// An operator has the source run the guest after the hand-over.
    TakeBack,
    /// The destination saves what it has into a file.
    SaveHalf,
    /// A guest is made of the files, and runs.
    Reconcile,
    /// A guest is made of the destination's file and of one of another guest's source, and runs.
    ReconcileWithOther,
}

use PostcopyAction as A;

impl Postcopy {
    /// What can happen next.
    pub(crate) fn choices(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        self.owners(state, actions);
        self.guest(state, actions);
        self.connection(state, actions);
        self.recovery(state, actions);
    }

    /// Who takes the guest.
    fn owners(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        let is_up = state.link == Link::Up;
        match (state.source, state.hand_over) {
            (SourceSide::Stopped, _) if is_up => actions.push(A::HandOver),
            (SourceSide::Stopped, _) => actions.push(A::RunAtSource),
            (SourceSide::Serves, _) if !is_up && !self.holds(PostcopyClause::NeverRunAgain) => {
                actions.push(A::RunAtSource);
            }
            _ => {}
        }
        if state.hand_over == HandOver::Sent && is_up {
            actions.push(A::TakeOver);
        }
    }

    fn guest(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        if !state.runs_there() {
            return;
        }
        if let Some(page) = state.waiting {
            let known = state.missing.has(page) || !self.holds(PostcopyClause::ZeroHere);
            let can_ask = matches!(state.link, Link::Up | Link::File) && !state.asked.has(page);
            if !known || can_ask {
                actions.push(A::Fault(page));
            }
            if state.link == Link::Broken && !self.holds(PostcopyClause::WaitForRecovery) {
                actions.push(A::AnswerAlone(page));
            }
            return;
        }
        if state.moves == 0 {
            return;
        }
        for page in ModelPages::all(self.setup.pages).iter() {
            actions.extend([A::Read(page), A::GiveUp(page)]);
            if state.memory[page.index()].is_some() {
                actions.push(A::Write(page));
            }
        }
    }

    fn connection(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        if state.cuts > 0 && matches!(state.link, Link::Up | Link::Greeted | Link::File) {
            actions.push(A::Break);
        }
        if matches!(state.link, Link::Up | Link::File) {
            actions.extend(state.under_way.iter().map(A::Arrive));
        }
        if state.link != Link::Up {
            return;
        }
        if state.source != SourceSide::Serves {
            return;
        }
        actions.extend(state.requests.iter().map(A::Request));
        if state.runs_there() {
            actions.extend(state.unsent.iter().map(A::Push));
        }
        if state.runs_there() && state.missing.is_empty() && !state.foreign {
            actions.push(A::Complete);
        }
        if state.unsent.is_empty() && !self.holds(PostcopyClause::KeepUntilComplete) {
            actions.push(A::Release);
        }
    }

    fn recovery(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        self.file(state, actions);
        self.halves(state, actions);
        self.death(state, actions);
        if state.source != SourceSide::Serves || !state.was_taken() {
            return;
        }
        match state.link {
            Link::Broken => {
                if self.setup.file {
                    actions.push(A::Save);
                }
                if !state.runs_there() {
                    return;
                }
                actions.push(A::Greet);
                if self.setup.stranger && !self.holds(PostcopyClause::SameSession) {
                    actions.push(A::Stranger);
                }
            }
            Link::Greeted => actions.push(A::GoOn),
            Link::Up | Link::GivenUp | Link::File => {}
        }
    }

    /// The destination goes on from a file.
    fn file(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        if !state.runs_there() {
            return;
        }
        match state.link {
            Link::Broken => {
                if state.file.is_some() {
                    actions.push(A::OpenFile);
                }
                if self.setup.stranger && !self.holds(PostcopyClause::MatchFile) {
                    actions.push(A::OpenOther);
                }
            }
            Link::File => {
                let saved = match state.foreign {
                    true => state.missing,
                    false => state.file.unwrap_or(ModelPages::EMPTY),
                };
                let left = saved.and(state.missing).minus(state.under_way);
                actions.extend(left.iter().map(A::Load));
            }
            Link::Up | Link::Greeted | Link::GivenUp => {}
        }
    }

    /// The destination ends, and an operator decides.
    fn death(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        let was_unsent = state.source == SourceSide::Stopped;
        let is_there = !matches!(
            state.hand_over,
            HandOver::Unrun | HandOver::Died | HandOver::Saved
        );
        if self.setup.dies && !was_unsent && is_there {
            actions.push(A::Die);
        }
        let never_ran = state.hand_over == HandOver::Unrun;
        let may_take_back = never_ran || !self.holds(PostcopyClause::TakeBackUnrun);
        let waits = state.source == SourceSide::Serves && state.link == Link::Broken;
        if self.setup.dies && waits && may_take_back {
            actions.push(A::TakeBack);
        }
    }

    /// Both sides save what they have, and a guest is made of that.
    fn halves(&self, state: &PostcopyState, actions: &mut Vec<A>) {
        if self.setup.halves && state.link == Link::Broken && state.runs_there() && !state.half {
            actions.push(A::SaveHalf);
        }
        if !state.half || state.is_whole {
            return;
        }
        // Where nothing is missing, the destination's half is enough.
        if state.file.is_some() || state.missing.is_empty() {
            actions.push(A::Reconcile);
        }
        if self.setup.stranger && !self.holds(PostcopyClause::MatchHalves) {
            actions.push(A::ReconcileWithOther);
        }
    }

    /// The state after `action`.
    pub(crate) fn step(&self, mut state: PostcopyState, action: A) -> PostcopyState {
        match action {
            A::HandOver => {
                state.source = SourceSide::Serves;
                state.hand_over = HandOver::Sent;
            }
            A::TakeOver => state.hand_over = HandOver::Taken,
            A::Read(page) => {
                state.moves -= 1;
                state.waiting = Some(page);
                state.wake(page);
            }
            A::Write(page) => {
                state.moves -= 1;
                state.version += 1;
                state.memory[page.index()] = Some(state.version);
                state.should[page.index()] = state.version;
            }
            A::GiveUp(page) => {
                state.moves -= 1;
                state.missing.remove(page);
                state.memory[page.index()] = None;
                state.should[page.index()] = 0;
            }
            A::Fault(page) => self.fault(&mut state, page),
            A::Request(page) => {
                state.requests.remove(page);
                if state.unsent.has(page) {
                    state.unsent.remove(page);
                    state.under_way.insert(page);
                }
            }
            A::Push(page) => {
                state.unsent.remove(page);
                state.under_way.insert(page);
            }
            A::Arrive(page) => {
                state.under_way.remove(page);
                let content = if state.foreign { FOREIGN } else { CONTENT };
                self.place(&mut state, page, content);
            }
            A::Break => self.breaks(&mut state),
            A::RunAtSource => state.source = SourceSide::Runs,
            A::AnswerAlone(page) => {
                state.memory[page.index()].get_or_insert(0);
                state.wake(page);
            }
            A::Greet => state.link = Link::Greeted,
            A::GoOn => {
                state.link = Link::Up;
                state.asked = ModelPages::EMPTY;
                if self.holds(PostcopyClause::ExchangeReceived) {
                    state.unsent = state.missing;
                    state.confirmed = self.promised().minus(state.missing);
                }
            }
            A::Stranger => {
                state.link = Link::Up;
                state.foreign = true;
                state.asked = ModelPages::EMPTY;
                state.unsent = state.missing;
            }
            A::Complete | A::Release => state.source = SourceSide::Ended,
            A::Save => {
                let is_whole = self.holds(PostcopyClause::SaveUnconfirmed);
                state.file = Some(match is_whole {
                    true => self.promised().minus(state.confirmed),
                    false => state.unsent,
                });
                state.source = SourceSide::Ended;
            }
            A::OpenFile | A::OpenOther => {
                state.link = Link::File;
                state.foreign = action == A::OpenOther;
                state.asked = ModelPages::EMPTY;
            }
            A::Load(page) => {
                state.requests.remove(page);
                state.under_way.insert(page);
            }
            A::Die => {
                state.hand_over = match state.runs_there() {
                    true => HandOver::Died,
                    false => HandOver::Unrun,
                };
                state.waiting = None;
                state.cuts += 1;
                self.breaks(&mut state);
            }
            A::TakeBack => state.source = SourceSide::Runs,
            A::SaveHalf => {
                state.half = true;
                if self.holds(PostcopyClause::StopForHalf) {
                    state.hand_over = HandOver::Saved;
                    state.waiting = None;
                }
            }
            A::Reconcile => {
                let saved = state.file.unwrap_or(ModelPages::EMPTY);
                self.reconcile(&mut state, saved, CONTENT);
            }
            A::ReconcileWithOther => {
                let missing = state.missing;
                self.reconcile(&mut state, missing, FOREIGN);
            }
        }
        state
    }

    fn fault(&self, state: &mut PostcopyState, page: Page) {
        let is_asked_for = state.missing.has(page) || !self.holds(PostcopyClause::ZeroHere);
        if is_asked_for {
            state.asked.insert(page);
            state.requests.insert(page);
        } else {
            state.memory[page.index()].get_or_insert(0);
            state.wake(page);
        }
    }

    fn place(&self, state: &mut PostcopyState, page: Page, content: u8) {
        if !state.missing.has(page) && self.holds(PostcopyClause::PlaceMissingOnly) {
            return;
        }
        state.missing.remove(page);
        // The kernel never replaces a page that is there.
        state.memory[page.index()].get_or_insert(content);
        state.wake(page);
    }

    /// Makes a guest of the destination's half and of the source's, which has `content` in the pages `saved`.
    fn reconcile(&self, state: &mut PostcopyState, saved: ModelPages, content: u8) {
        state.is_whole = true;
        let from_source = match self.holds(PostcopyClause::DestinationFirst) {
            true => saved.and(state.missing),
            false => saved,
        };
        for page in ModelPages::all(self.setup.pages).iter() {
            let there = state.memory[page.index()].unwrap_or(0);
            let found = if from_source.has(page) {
                content
            } else {
                there
            };
            let should = state.should[page.index()];
            if found != should && state.wrong.is_none() {
                state.wrong = Some(Wrong {
                    page,
                    found,
                    should,
                });
            }
        }
    }

    fn breaks(&self, state: &mut PostcopyState) {
        state.cuts -= 1;
        state.foreign = false;
        let is_recovery = state.link == Link::Greeted;
        state.link = match is_recovery && !self.holds(PostcopyClause::BackToPaused) {
            true => Link::GivenUp,
            false => Link::Broken,
        };
        state.requests = ModelPages::EMPTY;
        state.under_way = ModelPages::EMPTY;
        if state.hand_over == HandOver::Sent {
            state.hand_over = HandOver::Lost;
        }
    }
}
