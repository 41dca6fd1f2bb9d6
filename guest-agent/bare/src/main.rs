// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest without an operating system for tests of live migration.
//!
//! The guest fills its memory with stamped pages and frees most of them. Then, on all vCPUs, it writes, frees, allocates
//! and checks pages at configured rates, while it answers the balloon's requests for free page hints. [`spec::bare`]
//! describes its machine.
#![no_std]
#![no_main]

mod allocator;
mod boot;
mod console;
mod fill;
mod gaps;
mod heartbeat;
mod hinting;
mod layout;
mod memory;
mod memory_functions;
mod ports;
mod reads;
mod status;
mod time;
mod workload;

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use spec::PAGE_SHIFT;
use spec::bare::{AnswerPolicy, BootInfo, Event, HoldPolicy, StatusWord};
use spec::stamp::mix;

use allocator::Allocator;
use console::{fail, println};
use gaps::Beats;
use heartbeat::Heartbeat;
use hinting::Hinting;
use memory::Memory;
use reads::Reads;
use time::Clock;
use workload::Workload;

/// How long a vCPU sleeps when nothing is due.
const NAP: Duration = Duration::from_millis(1);

/// The program of a vCPU. vCPU 0 also sets up the guest, reports its events and serves the balloon.
fn run(vcpu: u64, info: &BootInfo) -> ! {
    let Some(memory) = Memory::new(info) else {
        fail(format_args!("too little memory below the gap"));
    };
    let keep = info.in_use_bytes >> PAGE_SHIFT;
    let filled = keep.saturating_add(info.freed_bytes >> PAGE_SHIFT);
    let mut leader = (vcpu == 0).then(|| Leader::new(&memory, info, filled));

    static STARTED: AtomicU64 = AtomicU64::new(0);
    meet(&STARTED, info.vcpus);
    fill::fill(&memory, filled);

    static FILLED: AtomicU64 = AtomicU64::new(0);
    meet(&FILLED, info.vcpus);
    let hold = match info.hold {
        early if early == HoldPolicy::Early as u64 => HoldPolicy::Early,
        _ => HoldPolicy::UntilDone,
    };
    let seed = mix(info.seed ^ mix(vcpu + 1));
    let mut allocator = Allocator::new(&memory, hold, keep / 32, seed);
    if let Some(leader) = &leader {
        fill::free_down_to(&memory, &mut allocator, filled, keep, seed);
        leader.ready();
    }

    static FREED: AtomicU64 = AtomicU64::new(0);
    meet(&FREED, info.vcpus);
    let mut workload = Workload::new(&memory, allocator, info);
    let clock = Clock::new(info.tsc_khz);
    let mut beats = Beats::new(vcpu, clock);
    let mut reads = Reads::new(&memory, vcpu, clock, mix(seed));
    let is_idle = info.idle != 0;
    loop {
        if !is_idle {
            workload.step(&mut beats);
        }
        reads.step();
        let busy = leader.as_mut().is_some_and(Leader::step);
        beats.beat();
        if !busy {
            ports::sleep(NAP);
            beats.beat();
        }
    }
}

/// Waits until all vCPUs have arrived.
fn meet(arrived: &AtomicU64, vcpus: u64) {
    arrived.fetch_add(1, Ordering::AcqRel);
    while arrived.load(Ordering::Acquire) < vcpus {
        ports::sleep(NAP);
    }
}

/// The tasks of vCPU 0.
#[derive(Debug)]
struct Leader<'m> {
    hinting: Hinting<'m>,
    heartbeat: Heartbeat,
    clock: Clock,
    start: time::Ticks,
}

impl<'m> Leader<'m> {
    fn new(memory: &'m Memory, info: &BootInfo, filled: u64) -> Self {
        let map = memory.map();
        println!(
            "bare guest: {} vCPUs, {} pages, {filled} to fill, seed {}",
            info.vcpus, map.pages, info.seed
        );
        if filled > map.pages {
            fail(format_args!(
                "cannot fill {} MiB of {} MiB",
                filled >> (20 - PAGE_SHIFT),
                map.pages >> (20 - PAGE_SHIFT)
            ));
        }
        status::set(StatusWord::StateTable, map.states);
        status::set(StatusWord::VersionTable, map.versions);
        status::set(StatusWord::FirstPage, map.first);
        status::set(StatusWord::Pages, map.pages);
        status::set_magic();
        let clock = Clock::new(info.tsc_khz);
        Self {
            hinting: Hinting::new(memory, clock, AnswerPolicy::from_raw(info.answer)),
            heartbeat: Heartbeat::new(info.seed),
            clock,
            start: time::now(),
        }
    }

    /// Announces that the first phase is over.
    fn ready(&self) {
        println!(
            "ready after {} ms, {} pages in use",
            self.clock.to_millis(time::now().saturating_sub(self.start)),
            status::get(StatusWord::InUse)
        );
        ports::announce(Event::Ready);
    }

    /// Does the next step. Returns whether there is more to do at once.
    fn step(&mut self) -> bool {
        self.heartbeat.check();
        self.hinting.step()
    }
}
