// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The effect of each step of the migrator.

use super::choices::hinted_late;
use super::{Host, HostAction, Owner, Step};
use crate::device::Control;
use crate::network::{self, Destination, Forward, Record, Wire};
use crate::pages::{MAX_PAGES, ModelPages, Page};
use crate::rule::Clause;
use crate::setup::Clearing;
use crate::state::{Migration, State};

/// Takes the step.
pub(crate) fn step(model: &Migration, state: &mut State, action: HostAction) {
    let rule = model.rule;
    match action {
        HostAction::StartLogging => start_logging(model, state),
        HostAction::Lend => lend(model, state),
        HostAction::ClearLog => {
            let fetched = state.logs.kvm.fetched;
            state.logs.kvm.clear(fetched);
            match state.host.step {
                Step::Clearing => harvest_others(model, state),
                Step::ClearingEarly => {
                    state.host.early.merge(fetched);
                    state.host.step = Step::Sending;
                }
                _ => {}
            }
        }
        HostAction::ClearLogOf(page) => state.logs.kvm.clear(ModelPages::from_iter([page])),
        HostAction::Begin => begin(model, state),
        HostAction::HearDevice => hear_device(state),
        HostAction::GiveUpDevice => {
            if state.device.control == Control::Dead {
                state.device.control = Control::Down;
            } else {
                state.host.impatience -= 1;
                state.device.control = Control::HungUp;
            }
            do_without(state);
        }
        HostAction::Claim(page) => claim(model, state, page),
        HostAction::Send(page, channel) => copy(model, state, page, channel),
        HostAction::Flush => {
            // A channel of the model carries one record at a time.
            let at_once = if model.setup.channels == 1 {
                MAX_PAGES
            } else {
                1
            };
            for page in state.host.table.iter().take(at_once) {
                state.host.table.remove(page);
                network::send(model, state, 0, Record { page, content: 0 });
            }
        }
        HostAction::DiscardLate(page) => {
            state.host.sent.remove(page);
            state.host.late.remove(page);
            network::send(model, state, 0, Record { page, content: 0 });
        }
        HostAction::EndRound => {
            state.host.round += 1;
            state.host.holes = ModelPages::EMPTY;
            state.host.asks_for_holes = true;
            close(model, state);
        }
        HostAction::HarvestInBackground => {
            state.host.background -= 1;
            if rule.holds(Clause::ForgetHoles) {
                state.host.holes = ModelPages::EMPTY;
            }
            close(model, state);
        }
        HostAction::ReadLogEarly => {
            state.host.early_harvests -= 1;
            if !state.logs.kvm.read().is_empty() {
                state.host.step = Step::ClearingEarly;
            }
        }
        HostAction::ReadLog => {
            if model.setup.late_discards && !rule.holds(Clause::DiscardBeforeHarvest) {
                state.host.late = hinted_late(model, state);
            }
            state.host.early_copied = ModelPages::EMPTY;
            let host = &mut state.host;
            let early = host.early.take();
            host.pending.merge(early);
            if rule.holds(Clause::ForgetOldHints) && !host.open {
                state.device.map = ModelPages::EMPTY;
            }
            host.pending.merge(state.logs.kvm.read());
            // While the guest is stopped, no page needs to be armed again.
            let clears = model.setup.clearing == Clearing::AtOnce
                && rule.holds(Clause::CompleteHarvest)
                && state.source_runs
                && !state.logs.kvm.fetched.is_empty();
            if clears {
                host.step = Step::Clearing;
            } else {
                harvest_others(model, state);
            }
        }
        HostAction::HarvestBackEnd => {
            if rule.holds(Clause::MergeBackEnd) {
                state.host.pending.merge(state.logs.back_end.take());
            }
            harvest_own(model, state);
        }
        HostAction::HarvestOwnWrites => {
            if rule.holds(Clause::MergeOwnWrites) {
                state.host.pending.merge(state.logs.own.take());
            }
            harvested(state);
        }
        HostAction::Pause => {
            if rule.holds(Clause::DrainBackEnds) {
                state.logs.catch_up();
            }
            state.source_runs = false;
            state.host.step = match state.host.step {
                Step::Lent => Step::Rest,
                _ => Step::Reading,
            };
        }
        HostAction::Commit => {
            state.wire.forward = Some(Forward::Commit);
            state.host.step = Step::Committed;
        }
        HostAction::HandOver => {
            state.wire.forward = Some(Forward::HandOver);
            state.wire.backward = None;
            state.host.owner = Owner::Unknown;
            state.host.step = Step::HandedOver;
            if model.setup.failures == 0 {
                network::take_over(model, state);
                heard_running(state);
            }
        }
        HostAction::HearRunning => heard_running(state),
        HostAction::NoticeBreak => {
            if !rule.holds(Clause::TwoPhaseHandOver) {
                state.source_runs = true;
            }
            state.host.step = Step::PuttingBack;
        }
        HostAction::Fail => fail(model, state),
        HostAction::TakeBack => {
            fail(model, state);
            if !rule.holds(Clause::NeverSendVoid) {
                // It waits behind the link, and the close sends what waits.
                state.wire.forward = Some(Forward::HandOver);
            }
        }
        HostAction::Stray(page) => state.memory[page.index()] = 0,
        HostAction::PutBack => put_back(model, state),
        HostAction::Abandon => state.host.step = Step::Over,
    }
}

fn fail(model: &Migration, state: &mut State) {
    state.host.failures -= 1;
    state.wire = Wire::default();
    if model.rule.holds(Clause::ResumeOnFailure) {
        state.source_runs = true;
    }
    state.host.step = Step::PuttingBack;
}

fn heard_running(state: &mut State) {
    state.host.owner = Owner::Destination;
    state.host.step = Step::PuttingBack;
}

/// Goes on with the logs of the other writers, if there are any.
fn harvest_others(model: &Migration, state: &mut State) {
    if model.setup.back_end_writes > 0 || model.setup.reporting {
        state.host.step = Step::TakingBackEnd;
    } else {
        harvest_own(model, state);
    }
}

fn harvest_own(model: &Migration, state: &mut State) {
    if model.setup.own_writes > 0 {
        state.host.step = Step::TakingOwn;
    } else {
        harvested(state);
    }
}

fn harvested(state: &mut State) {
    state.host.step = if state.source_runs {
        Step::Harvested
    } else {
        Step::Rest
    };
}

fn start_logging(model: &Migration, state: &mut State) {
    state.logs.start(model.setup.pages, model.setup.ring);
    if model.setup.clearing == Clearing::AtOnce {
        state.logs.kvm.clear(ModelPages::all(model.setup.pages));
    }
    if state.host.step == Step::Idle {
        prepare(model, state);
        state.host.step = Step::Arming;
    }
}

/// Begins a local migration.
fn lend(model: &Migration, state: &mut State) {
    prepare(model, state);
    state.host.pending = ModelPages::EMPTY;
    // Neither asked for nor told that it is over.
    state.host.hints_lost = true;
    state.host.lends = true;
    state.host.step = Step::Lent;
    state.destination.is_lent = true;
}

/// Prepares a new migration, to a new destination and with a new hint map.
fn prepare(model: &Migration, state: &mut State) {
    let is_retry = state.host.failures < model.setup.failures;
    if model.rule.holds(Clause::StartFromAllDirty) || !is_retry {
        state.host.pending = ModelPages::all(model.setup.pages);
        state.host.sent = ModelPages::EMPTY;
    }
    state.host.claimed = ModelPages::EMPTY;
    state.host.copied = ModelPages::EMPTY;
    state.host.early = ModelPages::EMPTY;
    state.host.early_copied = ModelPages::EMPTY;
    state.host.holes = ModelPages::EMPTY;
    state.host.asks_for_holes = true;
    state.host.table = ModelPages::EMPTY;
    state.host.late = ModelPages::EMPTY;
    state.host.epoch = 0;
    state.host.round = 0;
    state.host.background = model.setup.background;
    state.host.early_harvests = model.setup.early;
    state.host.lends = false;
    state.host.open = false;
    state.host.hints_lost = false;
    state.destination = Destination {
        // The process that received in vain may receive again.
        is_lent: state.destination.is_lent && !model.rule.holds(Clause::GiveLentBack),
        ..Destination::default()
    };
    state.wire = Wire::default();
    state.device.map = ModelPages::EMPTY;
    if matches!(state.device.control, Control::Down | Control::Dead) {
        state.device.control = Control::Quiet;
    }
}

/// Begins a round. If every clause holds, hints count only for pages that are armed now.
fn begin(model: &Migration, state: &mut State) {
    if state.host.step == Step::Idle {
        prepare(model, state);
    }
    if std::mem::take(&mut state.host.asks_for_holes) && model.setup.holes {
        let pages = ModelPages::all(model.setup.pages).iter();
        state.host.holes = pages
            .filter(|page| state.memory[page.index()] == 0)
            .collect();
    }
    let host = &mut state.host;
    let asks = model.setup.hints && !host.hints_lost;
    if !asks || host.open {
        host.step = Step::Sending;
        return;
    }
    host.epoch += 1;
    let lenient = [
        Clause::ArmFirst,
        Clause::ArmedWhenAsked,
        Clause::CompleteHarvest,
    ];
    let all = ModelPages::all(model.setup.pages);
    host.eligible = if lenient.into_iter().all(|clause| model.rule.holds(clause)) {
        all.minus(state.logs.kvm.fetched)
    } else {
        all
    };
    host.step = Step::Opening;
    if state.device.control != Control::Dead {
        state.device.control = Control::Open(host.epoch);
    }
}

fn hear_device(state: &mut State) {
    let ok = state.device.control == Control::Ok;
    state.device.control = Control::Quiet;
    match state.host.step {
        Step::Opening if ok => {
            state.host.open = true;
            state.host.step = Step::Sending;
        }
        Step::Closing if ok => {
            state.host.open = false;
            state.host.step = Step::Reading;
        }
        Step::Finishing => state.host.step = after(&state.host),
        _ => do_without(state),
    }
}

/// Goes on without hints, because the map can no longer be trusted.
fn do_without(state: &mut State) {
    let host = &mut state.host;
    host.hints_lost = true;
    host.open = false;
    host.eligible = ModelPages::EMPTY;
    host.step = match host.step {
        Step::Opening => Step::Sending,
        Step::Closing => Step::Reading,
        _ => after(host),
    };
}

/// Ends the round's epoch before a harvest.
fn close(model: &Migration, state: &mut State) {
    let host = &mut state.host;
    if !host.open || !model.rule.holds(Clause::CloseBeforeHarvest) {
        host.step = Step::Reading;
        return;
    }
    host.step = Step::Closing;
    if state.device.control != Control::Dead {
        state.device.control = Control::Close(host.epoch);
    }
}

fn claim(model: &Migration, state: &mut State, page: Page) {
    let hints_count = state.source_runs || !model.rule.holds(Clause::NoHintAfterPause);
    let host = &mut state.host;
    host.pending.remove(page);
    if host.copied.has(page) {
        host.copied.remove(page);
        return;
    }
    let hinted = hints_count && state.device.map.and(host.eligible).has(page);
    if !hinted && host.holes.has(page) && !host.early.has(page) {
        if host.sent.has(page) {
            host.sent.remove(page);
            make_zero(model, state, page, 0);
        }
        return;
    }
    if !hinted {
        host.claimed.insert(page);
        return;
    }
    if !model.rule.holds(Clause::KeepEarly) {
        host.early.remove(page);
    }
    if host.sent.has(page) && model.rule.holds(Clause::DiscardAtDestination) {
        host.sent.remove(page);
        let channel = (0..model.setup.channels)
            .find(|&channel| state.wire.channels[usize::from(channel)].is_none());
        make_zero(model, state, page, channel.unwrap_or_default());
    }
}

/// Makes `page` zero at the destination. The record is sent at once or waits in the table.
fn make_zero(model: &Migration, state: &mut State, page: Page, channel: u8) {
    if model.setup.tables {
        state.host.table.insert(page);
    } else {
        network::send(model, state, channel, Record { page, content: 0 });
    }
}

fn copy(model: &Migration, state: &mut State, page: Page, channel: u8) {
    let host = &mut state.host;
    if model.rule.holds(Clause::ClaimBeforeCopy) {
        host.claimed.remove(page);
    } else {
        host.copied.insert(page);
    }
    if host.early.has(page) {
        host.early.remove(page);
        // Only late discards look at it.
        if model.setup.late_discards {
            host.early_copied.insert(page);
        }
    }
    let content = state.memory[page.index()];
    let was_sent = host.sent.has(page);
    if content == 0 {
        host.sent.remove(page);
    } else {
        host.sent.insert(page);
    }
    // A page that is zero on both sides need not be sent.
    if content == 0 && was_sent {
        make_zero(model, state, page, channel);
    } else if content != 0 {
        network::send(model, state, channel, Record { page, content });
    }
}

fn put_back(model: &Migration, state: &mut State) {
    if model.rule.holds(Clause::StopLogging) {
        state.logs.stop();
    }
    // A guest that was handed over is told DONE by its new device.
    let tell = model.setup.hints
        && state.host.owner == Owner::Source
        && !state.host.hints_lost
        && model.rule.holds(Clause::SayDone)
        && state.device.control == Control::Quiet;
    if tell {
        state.device.control = Control::Done;
        state.host.step = Step::Finishing;
    } else {
        state.host.step = after(&state.host);
    }
}

/// The state after a migration. One that failed can be tried again.
fn after(host: &Host) -> Step {
    match host.owner {
        Owner::Source => Step::Idle,
        Owner::Unknown | Owner::Destination => Step::Over,
    }
}
