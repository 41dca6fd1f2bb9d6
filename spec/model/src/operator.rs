// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The operator, who sees both hosts and decides who owns the guest when neither host can know.

use crate::host::{Owner, Step};
use crate::network::{self, Presence};
use crate::rule::Clause;
use crate::state::{Action, Migration, State};

/// A step of an operator after the link died in the hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorAction {
    /// Sees that the guest does not run at the destination, and ends the process there.
    EndDestination,
    /// Decides for the source: the guest runs on there.
    ResumeSource,
    /// Decides for the destination: the guest runs there.
    ContinueDestination,
    /// Ends the source's process, or the source's host dies.
    EndSource,
}

/// The steps that an operator may take next.
pub(crate) fn actions(model: &Migration, state: &State, out: &mut Vec<Action>) {
    if model.setup.failures == 0 {
        return;
    }
    let mut push = |action| out.push(Action::Operator(action));
    let looks = model.rule.holds(Clause::LookFirst);
    let decides = model.rule.holds(Clause::OperatorDecides);
    let (host, presence) = (&state.host, state.destination.presence);
    let source_is_alive = !host.ended;
    let source_is_unsure = host.step == Step::Over && host.owner == Owner::Unknown;
    if source_is_unsure && source_is_alive {
        if presence == Presence::Ready {
            push(OperatorAction::EndSource);
            if decides {
                push(OperatorAction::EndDestination);
            }
        }
        if decides && (presence == Presence::Ended || !looks) {
            push(OperatorAction::ResumeSource);
        }
    }
    let link_is_dead =
        state.wire.broken || !matches!(host.step, Step::Committed | Step::HandedOver);
    if presence == Presence::Ready && decides && link_is_dead && (source_is_unsure || !looks) {
        push(OperatorAction::ContinueDestination);
    }
}

/// Takes the step.
pub(crate) fn step(model: &Migration, state: &mut State, action: OperatorAction) {
    match action {
        OperatorAction::EndDestination => state.destination.presence = Presence::Ended,
        OperatorAction::ResumeSource => {
            state.host.owner = Owner::Source;
            state.source_runs = true;
            state.wire.backward = None;
            state.host.step = Step::PuttingBack;
        }
        OperatorAction::ContinueDestination => network::take_over(model, state),
        OperatorAction::EndSource => state.host.ended = true,
    }
}
