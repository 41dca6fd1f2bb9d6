// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channels to the destination, and the destination itself.

use crate::host::Step;
use crate::pages::{ModelPages, Page, PerPage, Renaming};
use crate::rule::{Clause, Rule};
use crate::state::{Action, Migration, State};

/// The greatest number of channels.
pub const MAX_CHANNELS: usize = 2;

/// A record about a page, on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    pub(crate) page: Page,
    /// The content; 0 for a page of zeros and for a discard.
    pub(crate) content: u8,
}

/// A message from the source to the destination, after all pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forward {
    /// Everything was sent.
    Commit,
    /// The guest belongs to the destination.
    HandOver,
}

/// A message from the destination to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backward {
    /// Everything has arrived and is loaded.
    Ready,
    /// The guest runs.
    Running,
}

/// The messages on their way between the two hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wire {
    pub(crate) channels: [Option<Record>; MAX_CHANNELS],
    /// A channel has died, and what it carried is lost.
    pub(crate) channel_died: bool,
    pub(crate) forward: Option<Forward>,
    pub(crate) backward: Option<Backward>,
    /// The connection is broken, and messages on their way may be lost.
    pub(crate) broken: bool,
}

impl Wire {
    /// Whether the source may take everything that was sent for delivered.
    pub(crate) fn is_drained(&self, rule: Rule) -> bool {
        let misses = self.channel_died && rule.holds(Clause::NoticeDeadChannels);
        !misses && self.channels.iter().all(Option::is_none)
    }
}

/// The destination. Its memory is new and therefore zero, or the source's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Its own memory.
    pub(crate) memory: PerPage<u8>,
    /// It maps the source's memory instead.
    pub(crate) is_lent: bool,
    pub(crate) presence: Presence,
}

/// What the destination has of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Presence {
    /// At most a part of its memory.
    #[default]
    Receiving,
    /// All of it, stopped: it waits for the hand-over.
    Ready,
    /// It runs.
    Running,
    /// Nothing: the process has ended.
    Ended,
}

impl Destination {
    pub(crate) fn runs(&self) -> bool {
        self.presence == Presence::Running
    }
}

/// A step of the network or of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkAction {
    /// A channel delivers its record.
    Deliver(u8),
    /// A channel dies, and its record is lost.
    Cut(u8),
    /// The destination receives the source's message.
    Hear,
    /// The connection breaks during the hand-over.
    Break,
    /// A message that was on its way when the connection broke is lost.
    Lose,
    /// The destination notices that the connection is broken, and forgets the guest.
    Forget,
    /// The destination makes a page of the lent memory zero: it clears its memory, or a device writes or discards.
    Clear(Page),
}

pub(crate) fn renamed(state: &State, names: &Renaming) -> (Wire, Destination) {
    let record = |record: Record| Record {
        page: names.page(record.page),
        ..record
    };
    let wire = Wire {
        channels: state.wire.channels.map(|slot| slot.map(record)),
        ..state.wire
    };
    let destination = Destination {
        memory: names.each(state.destination.memory),
        ..state.destination
    };
    (wire, destination)
}

/// Sends `record`. A single channel keeps the order, so it can deliver at once.
pub(crate) fn send(model: &Migration, state: &mut State, channel: u8, record: Record) {
    if model.setup.channels == 1 {
        arrive(state, record);
    } else {
        state.wire.channels[usize::from(channel)] = Some(record);
    }
}

/// The destination places `record` in its memory.
fn arrive(state: &mut State, record: Record) {
    let Record { page, content } = record;
    if state.destination.is_lent {
        state.memory[page.index()] = content;
    } else {
        state.destination.memory[page.index()] = content;
    }
}

/// The destination runs the guest.
pub(crate) fn take_over(model: &Migration, state: &mut State) {
    state.wire.forward = None;
    state.destination.presence = Presence::Running;
    state.device = state.device.restored(model.rule);
}

/// The steps that may happen next.
pub(crate) fn actions(model: &Migration, state: &State, out: &mut Vec<Action>) {
    let mut push = |action| out.push(Action::Network(action));
    for channel in 0..model.setup.channels {
        if state.wire.channels[usize::from(channel)].is_some() {
            push(NetworkAction::Deliver(channel));
            if state.host.failures > 0 && !state.wire.channel_died {
                push(NetworkAction::Cut(channel));
            }
        }
    }
    if state.wire.forward.is_some() {
        push(NetworkAction::Hear);
        if state.wire.broken {
            push(NetworkAction::Lose);
        }
    }
    let held = state.destination.presence == Presence::Ready && state.wire.forward.is_none();
    if held && state.wire.broken && !model.rule.holds(Clause::KeepHeld) {
        push(NetworkAction::Forget);
    }
    let waits = matches!(
        state.destination.presence,
        Presence::Receiving | Presence::Ready
    );
    // A destination to which pages are sent clears its memory first.
    let clears = match state.host.lends {
        true => !model.rule.holds(Clause::KeepLent),
        false => state.host.step == Step::Arming,
    };
    if state.destination.is_lent && waits && clears {
        for page in ModelPages::all(model.setup.pages).iter() {
            if state.memory[page.index()] != 0 {
                push(NetworkAction::Clear(page));
            }
        }
    }
    if state.host.failures > 0 && !state.wire.broken && state.host.is_handing_over() {
        push(NetworkAction::Break);
    }
}

/// Takes the step.
pub(crate) fn step(model: &Migration, state: &mut State, action: NetworkAction) {
    match action {
        NetworkAction::Deliver(channel) => {
            if let Some(record) = state.wire.channels[usize::from(channel)].take() {
                arrive(state, record);
            }
        }
        NetworkAction::Cut(channel) => {
            state.wire.channels[usize::from(channel)] = None;
            state.wire.channel_died = true;
        }
        NetworkAction::Hear => match state.wire.forward.take() {
            Some(Forward::Commit) => {
                state.destination.presence = Presence::Ready;
                state.wire.backward = Some(Backward::Ready);
            }
            Some(Forward::HandOver) if state.destination.presence == Presence::Ready => {
                take_over(model, state);
                state.wire.backward = Some(Backward::Running);
            }
            // The destination has ended, or an operator has decided already.
            Some(Forward::HandOver) | None => {}
        },
        NetworkAction::Break => {
            state.host.failures -= 1;
            state.wire.broken = true;
        }
        NetworkAction::Lose => state.wire.forward = None,
        NetworkAction::Forget => state.destination.presence = Presence::Ended,
        NetworkAction::Clear(page) => state.memory[page.index()] = 0,
    }
}
