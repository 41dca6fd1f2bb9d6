// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks the bounds of `spec/sending-order.md` on every scenario of the simulation.

#[path = "../benches/simulation/mod.rs"]
mod simulation;

use simulation::{Arrival, FREE_SHARES, Policy, Scenario, grid};

/// A step of the simulation is a millisecond, so a wait may begin and end that much too late.
const TICKS: f64 = 0.002;

/// Runs every scenario, and checks the bound that `check` states.
fn everywhere(check: impl Fn(Scenario) -> Result<(), String>) {
    let broken: Vec<String> = grid()
        .filter_map(|scenario| check(scenario).err())
        .collect();
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
    everywhere(|scenario| {
        let off = scenario.hints_off().seconds;
        assert!(scenario.advance() <= f64::min(0.02 * off, 0.02) + 1e-9);
        let bound = off + scenario.advance() + TICKS;
        at_most("time", scenario, scenario.run(Policy::Real).seconds, bound)
    });
}

#[test]
fn no_more_is_sent_than_by_a_sender_that_never_waits() {
    everywhere(|scenario| {
        let bound = scenario.run(Policy::NeverWait).bytes;
        at_most("bytes", scenario, scenario.run(Policy::Real).bytes, bound)
    });
}

#[test]
fn it_is_never_slower_than_waiting_for_all_hints() {
    everywhere(|scenario| {
        let bound = scenario.run(Policy::WaitForAll).seconds + TICKS;
        at_most("time", scenario, scenario.run(Policy::Real).seconds, bound)
    });
}

#[test]
fn it_takes_at_most_twice_as_long_as_without_waiting() {
    everywhere(|scenario| {
        let never = scenario.run(Policy::NeverWait).seconds;
        let bound = 2.0 * never + scenario.advance() + TICKS;
        at_most("time", scenario, scenario.run(Policy::Real).seconds, bound)
    });
}

#[test]
fn the_wait_never_exceeds_the_time_that_hints_save() {
    everywhere(|scenario| {
        let real = scenario.run(Policy::Real);
        let waited = real.seconds - real.bytes / scenario.link;
        let saved = scenario.hints_off().seconds - real.bytes / scenario.link;
        at_most("wait", scenario, waited, saved + scenario.advance() + TICKS)
    });
}

#[test]
fn with_steady_hints_at_twice_the_links_speed_at_most_a_twentieth_is_sent_in_vain() {
    everywhere(|scenario| {
        if scenario.arrival != Arrival::Steady || scenario.hint_speed < 2.0 * scenario.link {
            return Ok(());
        }
        let best = scenario.best().bytes;
        at_most(
            "bytes",
            scenario,
            scenario.run(Policy::Real).bytes,
            1.05 * best,
        )
    });
}

#[test]
fn a_silent_guest_costs_no_byte() {
    for free in FREE_SHARES {
        for scenario in grid().filter(|scenario| scenario.free == free) {
            if matches!(scenario.arrival, Arrival::Silent | Arrival::Flood) {
                let bytes = scenario.run(Policy::Real).bytes;
                assert_eq!(bytes, scenario.hints_off().bytes, "{scenario:?}");
            }
        }
    }
}
