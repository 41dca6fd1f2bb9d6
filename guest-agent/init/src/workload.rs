// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The work of the guest: fill, free, then write and check for ever.

use std::convert::Infallible;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use spec::PAGE_SIZE;
use spec::stamp::Random;

use crate::area::PAGE;
use crate::command_line::{NotANumber, number};
use crate::report::Report;
use crate::stamped::{MemoryInUse, StampedPages, WrongPage};

/// The time between two portions of the steady work, short so that writes are spread over time.
const TICK: Duration = Duration::from_millis(10);
/// The full check takes at most this share of each tick. The rest is for the migration, if guest and host share
/// processors.
const CHECK_SHARE: Duration = Duration::from_millis(2);
/// The fewest ticks of a full pass of the check.
const PASS_TICKS: usize = 100;
/// Pages that are checked between two readings of the clock.
const CHECK_BATCH: usize = 16;
/// How often the guest reports on the console.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Churned memory is allocated in this many parts, one after the other, and freed in the same order. So at almost any time
/// some recently written memory is free.
const CHURN_PARTS: usize = 4;
/// How long a part stays in use, and how long it then stays free.
const CHURN_EVERY: Duration = Duration::from_millis(500);

/// How much memory the guest uses and how: the parameters `lacuna.in_use`, `.freed`, `.fragment`, `.churn` (bytes),
/// `.dirty_rate` (bytes a second) and `.seed` of the kernel's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Bytes that stay in use.
    in_use: u64,
    /// Bytes written once and then freed, before the guest is ready.
    freed: u64,
    /// Bytes of which every second page is freed; the others stay in use.
    fragment: u64,
    /// Bytes a second written to memory in use.
    dirty_rate: u64,
    /// Bytes that are allocated, stamped, checked and freed again and again.
    churn: u64,
    /// The seed of stamps and random choices.
    seed: u64,
}

impl Workload {
    /// Reads the parameters. Missing ones are 0, so a guest without parameters is idle.
    pub fn from_command_line(line: &str) -> Result<Self, NotANumber> {
        Ok(Self {
            in_use: number(line, "in_use", 0)?,
            freed: number(line, "freed", 0)?,
            fragment: number(line, "fragment", 0)?,
            dirty_rate: number(line, "dirty_rate", 0)?,
            churn: number(line, "churn", 0)?,
            seed: number(line, "seed", 0)?,
        })
    }

    /// Fills memory, frees a part of it, reports that, and works until the machine ends.
    pub fn run(self) -> io::Result<Infallible> {
        let whole = StampedPages::fill(size(self.in_use)?, self.seed)?;
        drop(StampedPages::fill(size(self.freed)?, self.seed)?);
        let fragmented = StampedPages::fill_every_second(size(self.fragment)?, self.seed)?;
        let mut work = SteadyWork::new(self, MemoryInUse::new(whole, fragmented))?;
        work.report.print();
        loop {
            let started = Instant::now();
            work.tick()?;
            thread::sleep(TICK.saturating_sub(started.elapsed()));
        }
    }
}

/// The work after the guest is ready.
struct SteadyWork {
    pages: MemoryInUse,
    random: Random,
    dirty_rate: u64,
    last_tick: Instant,
    /// Bytes that may be written now.
    due: u64,
    /// The next page of the full check.
    next_checked: usize,
    churn: Churn,
    last_churn: Instant,
    last_report: Instant,
    report: Report,
}

impl SteadyWork {
    fn new(workload: Workload, pages: MemoryInUse) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            pages,
            random: Random::new(workload.seed),
            dirty_rate: workload.dirty_rate,
            last_tick: now,
            due: 0,
            next_checked: 0,
            churn: Churn::new(size(workload.churn)?, workload.seed),
            last_churn: now,
            last_report: now,
            report: Report {
                ready: true,
                ..Default::default()
            },
        })
    }

    fn tick(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let gap = (now - self.last_tick).as_micros() as u64;
        self.report.longest_gap = self.report.longest_gap.max(gap);
        self.write(now);
        self.check();
        self.churn(now)?;
        if now - self.last_report >= REPORT_EVERY {
            self.last_report = now;
            self.report.print();
            self.report.longest_gap = 0;
        }
        Ok(())
    }

    /// Rewrites random pages at the dirty rate. Time in which the guest did not run is not made up for, because that would
    /// cause a burst.
    fn write(&mut self, now: Instant) {
        let elapsed = (now - self.last_tick).min(10 * TICK);
        self.last_tick = now;
        if self.pages.len() == 0 {
            return;
        }
        let micros = elapsed.as_micros() as u64;
        self.due = self
            .due
            .saturating_add(self.dirty_rate.saturating_mul(micros) / 1_000_000);
        for _ in 0..self.due / PAGE_SIZE {
            let index = self.random.below(self.pages.len() as u64) as usize;
            let checked = self.pages.rewrite(index);
            self.count(checked);
            self.report.writes += 1;
        }
        self.due %= PAGE_SIZE;
    }

    /// Goes on with the full check.
    fn check(&mut self) {
        let started = Instant::now();
        let mut left = self.pages.len().div_ceil(PASS_TICKS);
        while left > 0 && started.elapsed() < CHECK_SHARE {
            for _ in 0..left.min(CHECK_BATCH) {
                let checked = self.pages.check(self.next_checked);
                self.count(checked);
                self.next_checked += 1;
                if self.next_checked == self.pages.len() {
                    self.next_checked = 0;
                    self.report.full_passes += 1;
                }
            }
            left = left.saturating_sub(CHECK_BATCH);
        }
    }

    /// Allocates or frees the next part of the churned memory when that is due, so that the guest also frees memory during a
    /// migration.
    fn churn(&mut self, now: Instant) -> io::Result<()> {
        if now - self.last_churn < CHURN_EVERY / CHURN_PARTS as u32 {
            return Ok(());
        }
        if let Some(pages) = self.churn.step()? {
            for index in 0..pages.len() {
                self.count(pages.check(index));
            }
            self.report.churned += pages.len() as u64;
        }
        self.last_churn = Instant::now();
        Ok(())
    }

    fn count(&mut self, checked: Result<(), WrongPage>) {
        self.report.checks += 1;
        if let Err(wrong) = checked {
            self.report.wrong += 1;
            self.report.failure.get_or_insert_with(|| wrong.to_string());
        }
    }
}

/// Memory that is allocated, stamped and freed again and again.
struct Churn {
    parts: [Option<StampedPages>; CHURN_PARTS],
    /// The next part.
    next: usize,
    /// Pages of all parts.
    pages: usize,
    seed: u64,
}

impl Churn {
    fn new(bytes: usize, seed: u64) -> Self {
        Self {
            parts: Default::default(),
            next: 0,
            pages: bytes / PAGE,
            seed,
        }
    }

    /// Allocates the next part. If it is in use, returns it to be checked and freed.
    fn step(&mut self) -> io::Result<Option<StampedPages>> {
        let index = self.next;
        self.next = (index + 1) % CHURN_PARTS;
        let freed = self.parts[index].take();
        // If the pages cannot be divided evenly, the first parts have more.
        let pages = (self.pages + CHURN_PARTS - 1 - index) / CHURN_PARTS;
        if freed.is_none() && pages > 0 {
            self.parts[index] = Some(StampedPages::fill(pages * PAGE, self.seed)?);
        }
        Ok(freed)
    }
}

/// A number of bytes as `usize`.
fn size(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "lacuna.in_use=1048576 lacuna.freed=4096 lacuna.dirty_rate=400000 lacuna.seed=3";

    fn steady(churn: &str) -> SteadyWork {
        let workload = Workload::from_command_line(&format!("{LINE} {churn}")).unwrap();
        let whole = StampedPages::fill(512 << 10, 3).unwrap();
        let fragmented = StampedPages::fill_every_second(1 << 20, 3).unwrap();
        SteadyWork::new(workload, MemoryInUse::new(whole, fragmented)).unwrap()
    }

    #[test]
    fn writes_follow_the_rate_but_not_the_time_away() {
        let mut work = steady("");
        let mut now = work.last_tick;
        for _ in 0..100 {
            now += TICK;
            work.write(now);
        }
        // 400000 bytes a second are 97.6 pages.
        assert_eq!(work.report.writes, 97);
        work.write(now + Duration::from_secs(60));
        assert!(work.report.writes < 97 + 15);
        assert_eq!(work.report.wrong, 0);
    }

    #[test]
    fn a_full_pass_checks_every_page_once() {
        let mut work = steady("");
        while work.report.full_passes == 0 {
            work.check();
        }
        assert!(work.report.checks >= 256);
        assert_eq!(work.report.checks, 256 + work.next_checked as u64);
        assert_eq!(work.report.wrong, 0);
    }

    #[test]
    fn churned_memory_is_taken_then_checked_and_freed_part_by_part() {
        let mut work = steady("lacuna.churn=40960");
        let mut in_use = Vec::new();
        for _ in 0..3 * CHURN_PARTS {
            work.churn(work.last_churn + CHURN_EVERY).unwrap();
            let parts = work.churn.parts.iter().flatten();
            in_use.push(parts.map(StampedPages::len).sum::<usize>());
        }
        assert_eq!(in_use, [3, 6, 8, 10, 7, 4, 2, 0, 3, 6, 8, 10]);
        assert_eq!((work.report.churned, work.report.wrong), (10, 0));
    }
}
