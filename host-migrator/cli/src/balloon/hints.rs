// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon hints`: a round of hints that no migration asked for.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use spec::PAGE_SIZE;
use spec::control::{HintHolder, HintState, Request, RoundEnd};
use spec::hint_map::HintPhase;

use super::args::{DeviceArgs, StartArgs};
use super::device::Device;
use super::{BalloonError, print};
use crate::size::Size;

/// How often the state of a round is polled.
const POLL: Duration = Duration::from_millis(20);

pub(super) fn start(args: &StartArgs) -> Result<(), BalloonError> {
    let mut device = Device::connect(&args.device)?;
    let state = if args.detach {
        device.hints(Request::HintStart)?
    } else {
        whole_round(&mut device, args.timeout)?
    };
    show(args.device.json, &state)
}

pub(super) fn stop(args: &DeviceArgs) -> Result<(), BalloonError> {
    let state = Device::connect(args)?.hints(Request::HintStop)?;
    show(args.json, &state)
}

pub(super) fn status(args: &DeviceArgs) -> Result<(), BalloonError> {
    let state = Device::connect(args)?.hints(Request::HintState)?;
    show(args.json, &state)
}

/// Asks the guest for hints, waits until it has hinted all its free pages, and gives them back.
pub(super) fn whole_round(
    device: &mut Device,
    timeout: Duration,
) -> Result<HintState, BalloonError> {
    device.hints(Request::HintStart)?;
    let started = Instant::now();
    loop {
        let state = device.hints(Request::HintState)?;
        match (state.holder, state.ended, state.phase) {
            (HintHolder::Migrator, ..) | (_, RoundEnd::Migrator, _) => {
                let text = "a migration has ended the round";
                return Err(BalloonError::Guest(text.into()));
            }
            (_, RoundEnd::Reset, _) => {
                let text = "the guest was reset, or its VMM disconnected";
                return Err(BalloonError::Guest(text.into()));
            }
            (_, RoundEnd::Expired, _) => {
                let text = "the device has ended the round: it lasted longer than the device's --hint-round-limit";
                return Err(BalloonError::Guest(text.into()));
            }
            (_, RoundEnd::Stopped, _) => return Ok(state),
            (_, RoundEnd::None, HintPhase::Finished) => return device.hints(Request::HintStop),
            _ => {}
        }
        let after = started.elapsed();
        if after >= timeout {
            let state = sentence(&device.hints(Request::HintStop)?);
            return Err(BalloonError::Timeout { after, state });
        }
        thread::sleep(POLL);
    }
}

fn show(json: bool, state: &HintState) -> Result<(), BalloonError> {
    print(json, &as_json(state), &sentence(state))
}

fn as_json(state: &HintState) -> serde_json::Value {
    json!({
        "state": phase(state.phase),
        "holder": match state.holder {
            HintHolder::Nobody => "nobody",
            HintHolder::Migrator => "migrator",
            HintHolder::Person => "person",
        },
        "ended": match state.ended {
            RoundEnd::None => None,
            RoundEnd::Stopped => Some("stopped"),
            RoundEnd::Migrator => Some("migrator"),
            RoundEnd::Reset => Some("reset"),
            RoundEnd::Expired => Some("expired"),
        },
        "command-id": state.command_id,
        "hints": state.hints,
        "pages": state.pages,
        "agent-pages": state.agent_pages,
        "stale": state.stale,
        "rejected": state.rejected,
    })
}

fn sentence(state: &HintState) -> String {
    let whom = match state.holder {
        HintHolder::Nobody => "",
        HintHolder::Migrator => ", for a migration",
        HintHolder::Person => ", for a person",
    };
    let ended = match state.ended {
        RoundEnd::None | RoundEnd::Stopped => "",
        RoundEnd::Migrator => "; a migration ended the last round for a person",
        RoundEnd::Reset => "; the guest was reset during the last round for a person",
        RoundEnd::Expired => "; the device ended the last round for a person at its time limit",
    };
    let agent = match state.agent_pages {
        0 => String::new(),
        pages => format!(", {} of it by the agent", Size(pages * PAGE_SIZE)),
    };
    let mut text = format!(
        "{}{whom}: {} free in {} hint(s){agent}{ended}",
        phase(state.phase),
        Size(state.pages * PAGE_SIZE),
        state.hints
    );
    for (count, what) in [
        (state.stale, "came too late"),
        (state.rejected, "were invalid"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

fn phase(phase: HintPhase) -> &'static str {
    match phase {
        HintPhase::Closed => "idle",
        HintPhase::Requested => "requested",
        HintPhase::Running => "running",
        HintPhase::Finished => "finished",
        HintPhase::Done => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_names_state_holder_and_what_came() {
        let mut state = HintState::default();
        assert_eq!(sentence(&state), "idle: 0 B free in 0 hint(s)");
        state = HintState {
            phase: HintPhase::Done,
            holder: HintHolder::Migrator,
            ended: RoundEnd::Migrator,
            hints: 2,
            pages: 256,
            stale: 1,
            ..state
        };
        assert_eq!(
            sentence(&state),
            "done, for a migration: 1.00 MiB free in 2 hint(s); \
             a migration ended the last round for a person, 1 came too late"
        );
        assert_eq!(as_json(&state)["ended"], "migrator");
        assert_eq!(
            as_json(&HintState::default())["ended"],
            serde_json::Value::Null
        );
    }
}
