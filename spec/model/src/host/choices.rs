// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps that the migrator may take next.

use super::{HostAction, Owner, Step};
use crate::device::Control;
use crate::network::Backward;
use crate::pages::{ModelPages, Page};
use crate::rule::Clause;
use crate::setup::Clearing;
use crate::state::{Action, Migration, State};

/// The steps that the migrator may take next.
pub(crate) fn actions(model: &Migration, state: &State, out: &mut Vec<Action>) {
    let (rule, setup, host) = (model.rule, &model.setup, &state.host);
    let mut push = |action| out.push(Action::Host(action));
    let piecewise = setup.clearing == Clearing::PageByPage;
    match host.step {
        Step::Idle => {
            // A device that has not noticed the end of the last connection takes no new one.
            if state.device.control != Control::HungUp {
                push(HostAction::StartLogging);
                if !rule.holds(Clause::ArmFirst) && !piecewise {
                    push(HostAction::Begin);
                }
            }
            if setup.local {
                push(HostAction::Lend);
            }
            if host.failures < setup.failures {
                push(HostAction::Abandon);
            }
        }
        Step::Arming => {
            push(HostAction::Begin);
            push_clears(state, piecewise, &mut push);
        }
        Step::Lent => push(HostAction::Pause),
        Step::Opening | Step::Closing | Step::Finishing => match state.device.control {
            Control::Ok | Control::Refused => push(HostAction::HearDevice),
            Control::Dead => push(HostAction::GiveUpDevice),
            _ if host.impatience > 0 => push(HostAction::GiveUpDevice),
            _ => {}
        },
        Step::Sending => {
            if !state.logs.on {
                push(HostAction::StartLogging);
            }
            push_clears(state, piecewise, &mut push);
            push_sends(model, state, &mut push);
            let drained = setup.channels == 1
                || !rule.holds(Clause::DrainChannels)
                || state.wire.is_drained(rule) && host.claimed.is_empty();
            if drained {
                push_late_discards(model, state, &mut push);
            }
            let ready = drained && may_harvest(model, state);
            let flushed = push_flush(state, &mut push);
            if ready && flushed && host.pending.is_empty() && host.claimed.is_empty() {
                push(HostAction::EndRound);
            } else if ready
                && host.background > 0
                && (flushed && host.claimed.is_empty() || !rule.holds(Clause::FlushTables))
            {
                push(HostAction::HarvestInBackground);
            }
            let at_once = setup.clearing == Clearing::AtOnce;
            if host.early_harvests > 0 && at_once && may_harvest(model, state) {
                push(HostAction::ReadLogEarly);
            }
            if ready && !rule.holds(Clause::NoHintAfterPause) && host.claimed.is_empty() {
                push(HostAction::Pause);
            }
        }
        Step::Reading => {
            push_late_discards(model, state, &mut push);
            if !rule.holds(Clause::DrainChannels) || state.wire.is_drained(rule) {
                push(HostAction::ReadLog);
            }
        }
        Step::Clearing | Step::ClearingEarly => push(HostAction::ClearLog),
        Step::TakingBackEnd => push(HostAction::HarvestBackEnd),
        Step::TakingOwn => push(HostAction::HarvestOwnWrites),
        Step::Harvested => {
            if host.round < setup.rounds {
                push(HostAction::Begin);
            }
            if host.round > 0 {
                push(HostAction::Pause);
            }
        }
        Step::Rest => {
            push_sends(model, state, &mut push);
            let flushed = push_flush(state, &mut push);
            let sent = host.pending.is_empty() && host.claimed.is_empty() && flushed;
            if sent && state.wire.is_drained(rule) {
                // The guest is stopped. If nothing can fail, the messages until it runs make no difference.
                push(if setup.failures > 0 {
                    HostAction::Commit
                } else {
                    HostAction::HandOver
                });
            }
        }
        Step::Committed => {
            if state.wire.backward == Some(Backward::Ready) {
                push(HostAction::HandOver);
            }
        }
        Step::HandedOver => {
            if state.wire.broken {
                push(HostAction::NoticeBreak);
            } else if state.wire.backward == Some(Backward::Running) {
                push(HostAction::HearRunning);
            }
        }
        Step::PuttingBack => push(HostAction::PutBack),
        Step::Over => {}
    }
    if host.failures > 0 && may_fail(host.step) {
        push(HostAction::Fail);
    }
    let is_ready = state.wire.backward == Some(Backward::Ready);
    if host.failures > 0 && host.step == Step::Committed && is_ready {
        push(HostAction::TakeBack);
    }
    if state.destination.is_lent && host.owner != Owner::Source && !rule.holds(Clause::LetGo) {
        for page in ModelPages::all(setup.pages).iter() {
            if state.memory[page.index()] != 0 {
                push(HostAction::Stray(page));
            }
        }
    }
}

fn push_clears(state: &State, piecewise: bool, push: &mut impl FnMut(HostAction)) {
    let fetched = state.logs.kvm.fetched;
    if piecewise {
        fetched
            .iter()
            .for_each(|page| push(HostAction::ClearLogOf(page)));
    } else if !fetched.is_empty() {
        push(HostAction::ClearLog);
    }
}

fn push_sends(model: &Migration, state: &State, push: &mut impl FnMut(HostAction)) {
    let (rule, host) = (model.rule, &state.host);
    let armed = |page: Page| {
        !state.source_runs
            || state.logs.on && !state.logs.kvm.fetched.has(page)
            || !rule.holds(Clause::ArmBeforeCopy)
    };
    let claim_first = rule.holds(Clause::ClaimBeforeCopy);
    let free_channel = |channel: &u8| state.wire.channels[usize::from(*channel)].is_none();
    let mut push_send = |page| {
        for channel in (0..model.setup.channels).filter(free_channel) {
            push(HostAction::Send(page, channel));
        }
    };
    let copies = if claim_first {
        host.claimed
    } else {
        host.pending.minus(host.copied)
    };
    copies
        .iter()
        .filter(|&page| claim_first || armed(page))
        .for_each(&mut push_send);
    let claims = if claim_first {
        host.pending.minus(host.claimed)
    } else {
        host.copied
    };
    let room = (0..model.setup.channels).any(|channel| free_channel(&channel));
    for page in claims.iter().filter(|&page| armed(page)) {
        // A skipped page may need a discard record.
        if room {
            push(HostAction::Claim(page));
        }
    }
}

/// Flushes the table, if something waits in it and the first channel has room. Returns whether nothing waits.
fn push_flush(state: &State, push: &mut impl FnMut(HostAction)) -> bool {
    let flushed = state.host.table.is_empty();
    if !flushed && state.wire.channels[0].is_none() {
        push(HostAction::Flush);
    }
    flushed
}

/// Of the pages that were sent and are not to be sent again, those that the guest has hinted since.
pub(super) fn hinted_late(model: &Migration, state: &State) -> ModelPages {
    let host = &state.host;
    let mut hinted = state.device.map.and(host.eligible);
    if model.rule.holds(Clause::SpareEarlyCopies) {
        hinted.clear(host.early_copied);
    }
    hinted
        .and(host.sent)
        .minus(host.pending)
        .minus(host.claimed)
}

fn push_late_discards(model: &Migration, state: &State, push: &mut impl FnMut(HostAction)) {
    if !model.setup.late_discards || !state.source_runs || state.wire.channels[0].is_some() {
        return;
    }
    let mut late = hinted_late(model, state);
    late.merge(state.host.late.and(state.host.sent));
    late.iter()
        .for_each(|page| push(HostAction::DiscardLate(page)));
}

/// A harvest may begin when the bits that were read last are cleared.
fn may_harvest(model: &Migration, state: &State) -> bool {
    state.logs.on
        && (model.setup.clearing == Clearing::PageByPage || state.logs.kvm.fetched.is_empty())
}

/// Whether the migration may fail or be cancelled in this step. While it waits for the device, it would only notice later.
fn may_fail(step: Step) -> bool {
    !matches!(
        step,
        Step::Idle
            | Step::Opening
            | Step::Closing
            | Step::HandedOver
            | Step::PuttingBack
            | Step::Finishing
            | Step::Over
    )
}
