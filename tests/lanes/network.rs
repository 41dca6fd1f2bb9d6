// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest is handed over before its memory, and the network fails in every way in which networks fail.

use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use lacuna::args::CutKind;
use lacuna::compare::{Host, Line};
use spec::stamp::Random;
use spec_testing::skipped;

use crate::lab::{
    BareGuest, Lab, Network, comes_whole, connect_again, hand_over, listen_again,
    skipped_without_postcopy, status, until_paused, until_recovered,
};

/// How many guests lose their network in each test; more with this variable.
const RUNS: &str = "LACUNA_RANDOM_RUNS";
/// Bytes a second, so that a postcopy lasts.
const SLOWLY: u64 = 8 << 20;

fn runs() -> u64 {
    std::env::var(RUNS).map_or(1, |runs| runs.parse().expect(RUNS))
}

/// A busy guest whose machines soon notice that nothing arrives.
fn guest(seed: u64) -> BareGuest {
    BareGuest {
        seed,
        peer_timeout: "3",
        ..BareGuest::busy()
    }
}

fn pause(random: &mut Random, at_most: Duration) {
    thread::sleep(Duration::from_micros(
        random.below(at_most.as_micros() as u64),
    ));
}

#[test]
fn a_guest_whose_link_goes_down_gets_the_rest_of_its_memory_when_it_is_up_again() {
    if skipped_without_postcopy("postcopy, link down") {
        return;
    }
    let mut random = Random::new(15);
    for run in 0..runs() {
        let network = match Network::new() {
            Ok(network) => network,
            Err(why) => return skipped(why),
        };
        let lab = Lab::new(guest(run));
        let mut source = network.at_source(|| lab.running("source"));
        let address = format!("tcp:{}:0", Network::DESTINATION);
        let (mut destination, uri) =
            network.at_destination(|| lab.receiving_at("destination", &address, false));
        hand_over(&mut source, &uri, SLOWLY);
        let mut recoveries = 0;
        // Each end once.
        for is_source in [run % 2 == 0, run % 2 != 0] {
            pause(&mut random, Duration::from_millis(300));
            network.set_link(is_source, false);
            let Some(missing) = until_paused(&mut source, &mut destination) else {
                break;
            };
            println!("link down: {missing} pages missing");
            let listening = listen_again(&destination, Network::DESTINATION);
            let refused = connect_again(&source, &listening).unwrap_err();
            assert!(refused.contains("connect"), "{refused}");
            network.set_link(is_source, true);
            connect_again(&source, &listening).unwrap();
            recoveries = until_recovered(&mut source, recoveries);
        }
        assert!(recoveries > 0, "nothing broke");
        comes_whole(&mut source, &mut destination);
    }
}

/// Has both sides go on over a new line, as soon as both have noticed that the old one is broken. `None` if all memory had come before.
fn recover_over_a_line(source: &mut Host, destination: &mut Host) -> Option<Line> {
    loop {
        let missing = until_paused(source, destination)?;
        let line = Line::to(&listen_again(destination, "127.0.0.1")).unwrap();
        match connect_again(source, &line.address()) {
            Ok(()) => {
                println!("{missing} pages missing");
                return Some(line);
            }
            // It had not yet begun with the recovery before.
            Err(early) => println!("{early}"),
        }
    }
}

#[test]
fn a_guest_whose_recovery_breaks_twice_in_a_row_gets_the_rest_of_its_memory_after_the_third() {
    if skipped_without_postcopy("postcopy, breaks within recovery") {
        return;
    }
    let mut random = Random::new(16);
    for run in 0..runs() {
        let lab = Lab::new(guest(run));
        let mut source = lab.running("source");
        let (mut destination, uri) = lab.receiving("destination", false);
        let mut line = Line::to(&uri).unwrap();
        hand_over(&mut source, &line.address(), SLOWLY);
        pause(&mut random, Duration::from_millis(300));
        let kinds = CutKind::value_variants();
        let kinds = [(); 3].map(|()| kinds[random.below(kinds.len() as u64) as usize]);
        for how in kinds {
            line.cut(how);
            match recover_over_a_line(&mut source, &mut destination) {
                Some(next) => line = next,
                None => break,
            }
            // About as long as a recovery takes.
            pause(&mut random, Duration::from_millis(4));
        }
        comes_whole(&mut source, &mut destination);
        let recoveries = status(&source).migration.recoveries;
        println!("{kinds:?}: {recoveries} recoveries");
        assert!(recoveries > 0, "{kinds:?}");
    }
}
