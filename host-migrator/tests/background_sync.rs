// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Harvests in the middle of a round, at any moment of it, lose no write.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::env;
use std::sync::Arc;

use host_migrator::{MigrationParams, MigrationReport, PageSource, PageSources, Source};
use software_guest::balloon::Balloon;
use software_guest::copy::copy;
use software_guest::memory::Memory;
use software_guest::workload::{Behaviour, Workload};
use software_guest::{Guest, migrate, rounds};
use spec::PageRange;
use spec::stamp::Random;

/// How many migrations into memory run, and ten times as many as go over a connection. `LACUNA_SYNC_RUNS` sets another number.
const RUNS: u64 = 300;
/// Pages of the guest, in two regions.
const LOW: u64 = 700;
const HIGH: u64 = 200;
/// The pages that the balloon takes.
const TAKEN: u64 = 100;

fn runs() -> u64 {
    let runs = env::var("LACUNA_SYNC_RUNS").ok();
    runs.map_or(RUNS, |runs| runs.parse().expect("a number of runs"))
}

/// Two thirds of memory have content, and half of that is free again.
fn guest(random: &mut Random) -> Arc<Guest> {
    let guest = Guest::new(Memory::new(LOW, HIGH));
    for pfn in guest.memory.pages() {
        match random.below(3) {
            0 => {}
            1 => guest.write(pfn),
            _ => {
                guest.write(pfn);
                guest.memory.free(pfn);
            }
        }
    }
    Arc::new(guest)
}

/// All sources, and all but each one.
fn some_sources(random: &mut Random) -> PageSources {
    let sources = PageSource::ALL;
    let left_out = random.below(2 * sources.len() as u64) as usize;
    match sources.get(left_out) {
        Some(source) => PageSources::ALL.without(*source),
        None => PageSources::ALL,
    }
}

/// A guest that runs, and how it is migrated.
struct Case {
    guest: Arc<Guest>,
    source: Source<'static>,
    params: MigrationParams,
    workload: Workload,
}

/// Starts a guest, in every second case with a balloon that takes memory at the first harvest.
fn start(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let guest = guest(&mut random);
    let has_balloon = random.below(2) == 0;
    let behaviour = Behaviour {
        seed,
        hints: random.below(8) != 0,
        pause: random.below(20),
        // The guest does not use the pages that the balloon takes.
        first_page: if has_balloon { TAKEN } else { 0 },
    };
    let mut source = guest.source();
    if has_balloon {
        let taken = PageRange::new(0, TAKEN).unwrap();
        source.logs.push(Box::new(Balloon::new(&guest, taken)));
    }
    let params = rounds(1 + random.below(4) as u32)
        .with_sync_pages(1 + random.below(LOW + HIGH))
        .with_early_harvests(random.below(2) as u32 * 8)
        .with_sources(some_sources(&mut random));
    let workload = Workload::start(&guest, behaviour);
    Case {
        guest,
        source,
        params,
        workload,
    }
}

/// What all migrations together have done. It must not be nothing, or the test would show nothing.
#[derive(Default)]
struct Done {
    migrations: u64,
    syncs: u64,
    hinted: u64,
    zero: u64,
}

impl Done {
    fn add(&mut self, report: &MigrationReport) {
        self.migrations += 1;
        self.syncs += report.totals.syncs;
        self.hinted += report.totals.pages_hinted;
        self.zero += report.totals.pages_zero;
    }

    fn check(&self) {
        let Self {
            migrations,
            syncs,
            hinted,
            zero,
        } = self;
        println!(
            "{migrations} migrations with {syncs} harvests in the middle of a round, {hinted} pages hinted, {zero} zero"
        );
        assert!(syncs > migrations && *hinted > 0 && *zero > 0);
    }
}

#[test]
fn harvests_at_any_moment_of_a_round_lose_no_write() {
    let mut done = Done::default();
    for seed in 0..runs() {
        let Case {
            guest,
            mut source,
            params,
            workload,
        } = start(seed);
        let copy = copy(&mut source, &guest.machine, &params).unwrap();
        let wrong = copy.wrong_pages(&guest.memory);
        assert_eq!(wrong, [], "seed {seed}, {params:?}");
        guest.machine.take_back();
        workload.stop();
        done.add(&copy.report);
    }
    done.check();
}

#[test]
fn harvests_at_any_moment_lose_no_write_over_a_connection() {
    let mut done = Done::default();
    for seed in 0..runs() / 10 {
        let case = start(seed);
        let outcome = migrate(case.source, case.params.clone());
        case.workload.stop();
        let wrong = outcome.wrong_pages(&case.guest.memory);
        assert_eq!(wrong, [], "seed {seed}, {:?}", case.params);
        done.add(outcome.report());
    }
    done.check();
}
