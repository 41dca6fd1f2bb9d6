// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the sender's policy comes to, in simulated time: prints a table of time and bytes, as ratios.
//!
//! `best` knows all hints before they come; `never` sends at once; `all` waits until the guest is finished; `off` has no
//! hints. Everything is deterministic: the figures of `spec/sending-order.md` are these.

#[path = "simulation/mod.rs"]
mod simulation;

use simulation::{ARRIVALS, Arrival, Cost, HINT_SPEEDS, LINKS, Policy, Scenario, grid};

/// The part of the memory that is free in the long table.
const FREE: f64 = 0.5;

fn main() {
    println!("4 GiB, half of it free; time and bytes as multiples of the best");
    println!(
        "{:<14}{:>10}{:>10} |{:>8}{:>8}{:>8}{:>8} |{:>8}{:>8}{:>8}",
        "hints", "GB/s", "link", "time", "never", "all", "off", "bytes", "never", "off"
    );
    for arrival in ARRIVALS {
        for hint_speed in HINT_SPEEDS {
            if arrival == Arrival::Silent && hint_speed != HINT_SPEEDS[0] {
                continue;
            }
            for link in LINKS {
                line(Scenario {
                    arrival,
                    hint_speed,
                    link,
                    free: FREE,
                });
            }
        }
    }
    worst();
}

fn line(scenario: Scenario) {
    let best = scenario.best();
    let [real, never, all] =
        [Policy::Real, Policy::NeverWait, Policy::WaitForAll].map(|policy| scenario.run(policy));
    let off = scenario.hints_off();
    let time = |cost: Cost| cost.seconds / best.seconds;
    let bytes = |cost: Cost| cost.bytes / best.bytes;
    println!(
        "{:<14}{:>10.2}{:>10.2} |{:>8.2}{:>8.2}{:>8.2}{:>8.2} |{:>8.2}{:>8.2}{:>8.2}",
        format!("{:?}", scenario.arrival),
        scenario.hint_speed / 1e9,
        scenario.link / 1e9,
        time(real),
        time(never),
        time(all),
        time(off),
        bytes(real),
        bytes(never),
        bytes(off),
    );
}

/// The worst of all scenarios, the free shares included.
fn worst() {
    println!("\nover all {} scenarios, at worst:", grid().count());
    let worst = |name: &str, measure: &dyn Fn(Scenario) -> Option<f64>| {
        let found = grid()
            .filter_map(|scenario| Some((measure(scenario)?, scenario)))
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        if let Some((value, scenario)) = found {
            println!("{name:<44}{value:>8.4}  {scenario:?}");
        }
    };
    worst("time / hints off", &|scenario| {
        Some(scenario.run(Policy::Real).seconds / scenario.hints_off().seconds)
    });
    worst("time / (hints off + advance)", &|scenario| {
        let bound = scenario.hints_off().seconds + scenario.advance();
        Some(scenario.run(Policy::Real).seconds / bound)
    });
    worst("time / never wait", &|scenario| {
        Some(scenario.run(Policy::Real).seconds / scenario.run(Policy::NeverWait).seconds)
    });
    worst("time / wait for all, where that ends", &|scenario| {
        let all = scenario.run(Policy::WaitForAll).seconds;
        all.is_finite()
            .then(|| scenario.run(Policy::Real).seconds / all)
    });
    worst("bytes / never wait", &|scenario| {
        Some(scenario.run(Policy::Real).bytes / scenario.run(Policy::NeverWait).bytes)
    });
    worst("bytes / best, steady hints twice the link", &|scenario| {
        let fast =
            scenario.arrival == Arrival::Steady && scenario.hint_speed >= 2.0 * scenario.link;
        fast.then(|| scenario.run(Policy::Real).bytes / scenario.best().bytes)
    });
}
