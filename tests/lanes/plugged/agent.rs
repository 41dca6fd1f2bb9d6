// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Claims that hold under every VMM whose guest runs the agent in addition to the stock balloon driver.

use std::fmt;
use std::fs::File;
use std::thread;
use std::time::Duration;

use host_migrator::HintSource;
use spec::control::{EpochReport, Refusal, Request};
use spec::hint_map::{HintPhase, Tellers};

use super::claims::MAP_PAGES;
use super::device::Device;
use super::guest::Guest;
use super::{MIB, Vmm, eventually};

/// One-page files that [`fragment`] makes; every second one is removed.
const FILES: u64 = 20_000;
/// Memory left free besides these files; some of it is in blocks that the driver can hint.
const WHOLE: u64 = 48 * MIB;

const DRIVER: Tellers = Tellers {
    driver: true,
    agent: false,
};
const AGENT: Tellers = Tellers {
    driver: false,
    agent: true,
};

/// The results of one epoch of a migration.
#[derive(Debug)]
struct Epoch {
    /// Bytes that were free, according to the guest, when it was asked.
    free: u64,
    /// Bytes of memory past the end of the guest's page flags.
    hidden: u64,
    report: EpochReport,
}

impl Epoch {
    /// Lets a migrator ask `tellers` once, and waits until the guest has its memory back.
    fn of(tellers: Tellers, device: &Device, guest: &mut Guest) -> Self {
        let mut migrator = device.migrator_for(MAP_PAGES, tellers);
        let hidden = hidden(guest);
        let free = guest.memory("MemFree");
        migrator.open(1).expect("the guest is asked");
        eventually("the guest's hints", || {
            (migrator.phase() == HintPhase::Finished).then_some(())
        });
        let report = migrator.close(1).expect("the epoch is closed");
        let mut taken = 0;
        migrator.take_all(&mut |_, told| taken += u64::from(told.pages().count_ones()));
        assert_eq!(taken, report.pages, "the map holds what is reported");
        let held = guest.memory("MemFree") < free / 10 * 9;
        assert_eq!(
            held,
            report.hints > 0,
            "only the driver holds the pages that it hints"
        );
        migrator.done().expect("the guest is told");
        eventually("the guest's memory", || {
            (guest.memory("MemFree") > free / 10 * 9).then_some(())
        });
        let epoch = Self {
            free,
            hidden,
            report,
        };
        println!("{epoch}");
        epoch
    }

    /// The first epoch that the newly started agent answers.
    fn with_agent(device: &Device, guest: &mut Guest) -> Self {
        eventually("the agent", || {
            let epoch = Self::of(Tellers::ALL, device, guest);
            (epoch.report.agent_pages > 0).then_some(epoch)
        })
    }

    /// Bytes that were reported as free.
    fn told(&self) -> u64 {
        self.report.pages * spec::PAGE_SIZE
    }

    /// Checks that all free memory was reported, except one percent, the memory that shells and the agent use meanwhile, and
    /// memory that no agent can see.
    fn assert_complete(&self) {
        let slack = self.free / 100 + 2 * MIB;
        let told = self.told();
        assert!(told + self.hidden + slack > self.free, "{self}");
        assert!(told < self.free + slack, "{self}");
        assert_eq!((self.report.stale, self.report.rejected), (0, 0), "{self}");
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agents = self.report.agent_pages * spec::PAGE_SIZE;
        write!(
            f,
            "{} KiB free, {} KiB told, {} KiB of them by the agent alone; {} KiB have no page flags",
            self.free >> 10,
            self.told() >> 10,
            agents >> 10,
            self.hidden >> 10
        )
    }
}

/// Bytes of memory whose page flags the guest's kernel does not show: the kernel of User Mode Linux confuses the size of its
/// memory with its end.
fn hidden(guest: &mut Guest) -> u64 {
    let mut number = |line| guest.run(line).trim().parse::<u64>().expect("a number");
    let end = number(
        "awk '/spanned/ { s = $2 } /start_pfn/ && $2 + s > e { e = $2 + s } END { print e }' /proc/zoneinfo",
    );
    let shown = number("cat /proc/kpageflags | wc -c") / 8;
    end.saturating_sub(shown) * spec::PAGE_SIZE
}

/// Pages in free runs of at least 512, as the agent sees them.
fn in_long_runs(guest: &mut Guest) -> u64 {
    let summary = guest.run("lacuna-agent --print");
    let runs = summary.lines().filter_map(|line| {
        let (length, pages) = line.trim().split_once(" pages or more: ")?;
        let long = length.parse::<u64>().is_ok_and(|length| length >= 512);
        long.then(|| pages.strip_suffix(" pages")?.parse::<u64>().ok())?
    });
    runs.sum()
}

/// Fragments the guest's memory: little of it is free in whole blocks, and much in single pages.
fn fragment(guest: &mut Guest) {
    let rest = FILES * spec::PAGE_SIZE + WHOLE;
    let used = guest.memory("MemFree") - rest;
    guest.fill("used", used);
    // One byte in a file takes a page. Shell built-ins are fast, even on an emulated processor.
    guest.run(&format!(
        "mkdir /tmp/pages && cd /tmp/pages && i=0 && \
         while [ $i -lt {FILES} ]; do echo > $i; i=$((i + 1)); done && rm *[02468] && cd /"
    ));
}

pub fn the_agent_reports_every_free_page_and_the_driver_whole_blocks(vmm: &dyn Vmm) {
    let mut device = vmm.device();
    let mut guest = vmm.run(&mut device, "");
    fragment(&mut guest);
    let driver = Epoch::of(DRIVER, &device, &mut guest);
    assert_eq!(driver.report.agent_pages, 0);
    guest.start_agent(vmm.agent_port(), "");
    let both = Epoch::with_agent(&device, &mut guest);
    both.assert_complete();
    assert_eq!(both.report.hints, 0, "the driver is not asked: {both}");
    let agent = Epoch::of(AGENT, &device, &mut guest);
    agent.assert_complete();
    assert_eq!(agent.report.agent_pages, agent.report.pages);
    // The removed files are half of FILES pages, and no two are neighbours.
    let single = FILES / 2 * spec::PAGE_SIZE;
    // The memory that the agent cannot see may be blocks that the driver hinted, or such pages.
    assert!(
        driver.told() + single / 10 * 9 < both.told() + both.hidden,
        "{driver}; {both}"
    );
    device.check();
}

pub fn pages_that_are_zeroed_when_freed_are_reported(vmm: &dyn Vmm) {
    let mut device = vmm.device();
    let mut guest = vmm.run(&mut device, "init_on_free=1");
    let summary = guest.run("lacuna-agent --print");
    assert!(summary.contains("zeroed when they are freed"), "{summary}");
    guest.start_agent(vmm.agent_port(), "");
    Epoch::with_agent(&device, &mut guest).assert_complete();
    device.check();
}

pub fn the_agent_does_not_report_poisoned_pages_either(vmm: &dyn Vmm) {
    let mut device = vmm.device();
    let mut guest = vmm.run(&mut device, "page_poison=1");
    let summary = guest.run("lacuna-agent --print");
    assert!(summary.contains("filled with a pattern"), "{summary}");
    guest.start_agent(vmm.agent_port(), "");
    let log = eventually("the agent", || {
        let log = guest.run("cat /tmp/agent.log");
        log.contains("connected to").then_some(log)
    });
    assert!(log.contains("sends them all"), "{log}");
    for _ in 0..2 {
        assert_eq!(device.hints(Request::HintStart), Err(Refusal::Poison));
    }
    device.check();
}

pub fn the_agents_preparation_makes_more_pages_free(vmm: &dyn Vmm) {
    let mut device = vmm.device();
    let cached = 128 * MIB;
    File::create(device.disk())
        .and_then(|file| file.set_len(cached))
        .expect("there is room");
    let mut guest = vmm.run(&mut device, "");
    fragment(&mut guest);
    guest.run("rm /tmp/used");
    // The cache of a disk is dropped when its last user closes it.
    let disk = vmm.disk();
    guest.run(&format!(
        "exec 5< {disk} && dd if={disk} of=/dev/null bs=1M 2> /dev/null"
    ));
    assert!(guest.memory("Buffers") > cached / 10 * 9);
    let runs_before = in_long_runs(&mut guest);
    guest.start_agent(vmm.agent_port(), "");
    let before = Epoch::with_agent(&device, &mut guest);
    before.assert_complete();
    assert!(guest.memory("Buffers") > cached / 10 * 9, "nobody asked");
    guest.stop_agent();
    guest.start_agent(vmm.agent_port(), "--drop-caches --compact");
    let after = Epoch::with_agent(&device, &mut guest);
    let log = guest.run("cat /tmp/agent.log");
    for done in ["drop_caches", "compact_memory"] {
        assert!(
            log.contains(&format!("1 written to /proc/sys/vm/{done}")),
            "{log}"
        );
    }
    assert!(guest.memory("Buffers") < cached / 10, "{log}");
    assert!(
        after.told() > before.told() + cached / 10 * 9,
        "{before}; {after}"
    );
    let runs = in_long_runs(&mut guest);
    println!("pages in runs of 512 or more: {runs_before}, then {runs}");
    assert!(runs > runs_before + (cached >> 12) + FILES / 4);
    device.check();
}

/// The VMM connects the agent's port again, but not the balloon. So the new device has no guest memory and no driver. It asks
/// the agent nevertheless, and the answer shows that the agent is there.
pub fn the_agent_comes_back_to_a_device_that_was_restarted(vmm: &dyn Vmm) {
    let mut device = vmm.device();
    let mut guest = vmm.run(&mut device, "");
    guest.start_agent(vmm.agent_port(), "");
    Epoch::with_agent(&device, &mut guest).assert_complete();
    device.restart();
    let report = answer_to_a_new_device(&device);
    assert_eq!((report.stale, report.rejected), (0, 0), "{report:?}");
    device.check();
}

/// Waits until the agent has connected to `device` and has answered in an epoch.
fn answer_to_a_new_device(device: &Device) -> EpochReport {
    let mut migrator = device.migrator(MAP_PAGES);
    eventually("the agent", || migrator.open(1).ok());
    eventually("its answer", || {
        (migrator.phase() == HintPhase::Finished).then_some(())
    });
    migrator.close(1).expect("the epoch is closed")
}

/// At any moment of an epoch: before, during or after the agent's answer.
pub fn the_agent_comes_back_to_a_device_that_was_killed_in_an_epoch(vmm: &dyn Vmm) {
    let mut device = vmm.device();
    let mut guest = vmm.run(&mut device, "");
    // The answer takes a while.
    fragment(&mut guest);
    guest.start_agent(vmm.agent_port(), "");
    Epoch::with_agent(&device, &mut guest);
    for moment in [0, 10, 20, 30, 40] {
        let mut migrator = device.migrator(MAP_PAGES);
        eventually("the agent", || migrator.open(1).ok());
        thread::sleep(Duration::from_millis(moment));
        let phase = migrator.phase();
        device.restart();
        let report = answer_to_a_new_device(&device);
        println!("killed in phase {phase:?}, then {report:?}");
        assert_eq!(report.rejected, 0, "{report:?}");
        guest.run("true");
    }
    device.check();
}
