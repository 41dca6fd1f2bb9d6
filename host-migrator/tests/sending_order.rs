// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks the bounds of `spec/sending-order.md` on every scenario of the simulation.

#[path = "../benches/simulation/mod.rs"]
mod simulation;

use std::sync::LazyLock;

use simulation::{Arrival, Cost, Policy, Scenario, grid};

/// A step of the simulation is a millisecond, so a wait may begin and end that much too late.
const TICKS: f64 = 0.002;

/// A scenario, and what it costs.
#[derive(Clone, Copy)]
struct Simulated {
    scenario: Scenario,
    real: Cost,
    never: Cost,
    all: Cost,
}

static GRID: LazyLock<Vec<Simulated>> = LazyLock::new(|| {
    grid()
        .map(|scenario| Simulated {
            scenario,
            real: scenario.run(Policy::Real),
            never: scenario.run(Policy::NeverWait),
            all: scenario.run(Policy::WaitForAll),
        })
        .collect()
});

/// Checks the bound that `check` states in every scenario.
fn everywhere(check: impl Fn(Simulated) -> Result<(), String>) {
    let broken: Vec<String> = GRID.iter().filter_map(|one| check(*one).err()).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn at_most(what: &str, scenario: Scenario, value: f64, bound: f64) -> Result<(), String> {
    if value <= bound {
        Ok(())
    } else {
        Err(format!("{what}: {value} > {bound} in {scenario:?}"))
    }
}

#[test]
fn hints_never_cost_more_time_than_the_advance() {
    everywhere(|Simulated { scenario, real, .. }| {
        let off = scenario.hints_off().seconds;
        assert!(scenario.advance() <= f64::min(0.02 * off, 0.02) + 1e-9);
        let bound = off + scenario.advance() + TICKS;
        at_most("time", scenario, real.seconds, bound)
    });
}

#[test]
fn no_more_is_sent_than_by_a_sender_that_never_waits() {
    everywhere(|one| at_most("bytes", one.scenario, one.real.bytes, one.never.bytes));
}

#[test]
fn it_is_never_slower_than_waiting_for_all_hints() {
    everywhere(|one| {
        at_most(
            "time",
            one.scenario,
            one.real.seconds,
            one.all.seconds + TICKS,
        )
    });
}

#[test]
fn it_takes_at_most_twice_as_long_as_without_waiting() {
    everywhere(|one| {
        let bound = 2.0 * one.never.seconds + one.scenario.advance() + TICKS;
        at_most("time", one.scenario, one.real.seconds, bound)
    });
}

#[test]
fn the_wait_never_exceeds_the_time_that_hints_save() {
    everywhere(|Simulated { scenario, real, .. }| {
        let waited = real.seconds - real.bytes / scenario.link;
        let saved = scenario.hints_off().seconds - real.bytes / scenario.link;
        at_most("wait", scenario, waited, saved + scenario.advance() + TICKS)
    });
}

#[test]
fn with_steady_hints_at_twice_the_links_speed_at_most_a_twentieth_is_sent_in_vain() {
    everywhere(|Simulated { scenario, real, .. }| {
        if scenario.arrival != Arrival::Steady || scenario.hint_speed < 2.0 * scenario.link {
            return Ok(());
        }
        at_most("bytes", scenario, real.bytes, 1.05 * scenario.best().bytes)
    });
}

#[test]
fn a_silent_guest_costs_no_byte() {
    let useless = |arrival| matches!(arrival, Arrival::Silent | Arrival::Flood);
    for one in GRID.iter().filter(|one| useless(one.scenario.arrival)) {
        assert_eq!(
            one.real.bytes,
            one.scenario.hints_off().bytes,
            "{:?}",
            one.scenario
        );
    }
}
