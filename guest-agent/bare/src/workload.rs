// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steady phase: the guest writes pages in use, frees some, allocates others and checks all of them, for ever.

use core::sync::atomic::{AtomicU64, Ordering};

use spec::PAGE_SIZE;
use spec::bare::{BootInfo, PageState, StatusWord};

use crate::allocator::Allocator;
use crate::console::println;
use crate::gaps::Beats;
use crate::memory::{Claim, Memory};
use crate::status;
use crate::time::{self, Clock, Pace, Rate, Ticks};

/// Pages checked in a step, in addition to one for each page written.
const CHECKS_A_STEP: u64 = 32;
/// Neighbouring pages that are checked together.
const BLOCK: u64 = 64;
/// The most blocks in a step, however few of their pages are in use.
const BLOCKS_A_STEP: u64 = 8;
/// Wrong stamps that are printed; the others are counted.
const WRONG_STAMPS_PRINTED: u64 = 8;

/// A vCPU's share of the work.
#[derive(Debug)]
pub struct Workload<'m> {
    memory: &'m Memory,
    allocator: Allocator<'m>,
    writes: Pace,
    churn: Pace,
    /// Pages that should be in use.
    target: u64,
    /// The time limit for writing in a step.
    step: Ticks,
}

impl<'m> Workload<'m> {
    /// The work that `info` asks for, on pages from `allocator`.
    pub fn new(memory: &'m Memory, allocator: Allocator<'m>, info: &BootInfo) -> Self {
        let clock = Clock::new(info.tsc_khz);
        let bytes = Rate {
            amount: info.dirty_rate,
            unit: PAGE_SIZE,
        };
        let pages = Rate {
            amount: info.churn_rate,
            unit: 1,
        };
        Self {
            memory,
            allocator,
            writes: Pace::new(clock, bytes, info.vcpus),
            churn: Pace::new(clock, pages, info.vcpus),
            target: info.in_use_bytes / PAGE_SIZE,
            step: clock.micros(2000),
        }
    }

    /// Does the work that is due, for at most a few milliseconds.
    pub fn step(&mut self, beats: &mut Beats) {
        let end = time::now().wrapping_add(self.step);
        let in_time = |beats: &mut Beats| (end.wrapping_sub(beats.beat()) as i64) > 0;
        let mut written = 0;
        while in_time(beats) && self.writes.take() {
            self.rewrite();
            written += 1;
        }
        while in_time(beats) && self.churn.take() {
            self.churn();
        }
        self.check(written + CHECKS_A_STEP, beats);
    }

    /// Writes the next stamp of a page in use.
    fn rewrite(&mut self) {
        if let Some(mut page) = self.allocator.any_in_use() {
            verify(&mut page);
            page.stamp();
            page.release(PageState::InUse);
            status::add(StatusWord::Writes, 1);
        }
    }

    /// Allocates a page and frees another. While there is none to allocate (all are hinted and held), it frees up to an
    /// eighth of the pages in use, and catches up later.
    fn churn(&mut self) {
        for _ in 0..2 {
            if status::get(StatusWord::InUse) <= self.target {
                match self.allocator.take() {
                    Some(page) => self.allocator.put_in_use(page),
                    None => break,
                }
            }
        }
        if status::get(StatusWord::InUse) > self.target - self.target / 8
            && let Some(mut page) = self.allocator.any_in_use()
        {
            verify(&mut page);
            self.allocator.free(page);
        }
    }

    /// Goes on with the check of all pages in use until about `budget` more were checked. A page that another vCPU works on
    /// is skipped: that vCPU checks it before it writes.
    fn check(&mut self, budget: u64, beats: &mut Beats) {
        static BLOCKS_BEGUN: AtomicU64 = AtomicU64::new(0);
        static BLOCKS_DONE: AtomicU64 = AtomicU64::new(0);
        let pages = self.memory.pages();
        let blocks = pages.div_ceil(BLOCK);
        let mut checked = 0;
        for _ in 0..BLOCKS_A_STEP {
            if checked >= budget {
                break;
            }
            let start = BLOCKS_BEGUN.fetch_add(1, Ordering::Relaxed) % blocks * BLOCK;
            let in_use = (start..pages.min(start + BLOCK))
                .filter(|&index| self.memory.is(index, PageState::InUse))
                .filter_map(|index| self.memory.claim(index, PageState::InUse));
            for mut page in in_use {
                verify(&mut page);
                page.release(PageState::InUse);
                checked += 1;
                beats.beat();
            }
            if (BLOCKS_DONE.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(blocks) {
                status::add(StatusWord::FullPasses, 1);
            }
        }
    }
}

/// Checks a page in use. A wrong page is counted, and stamped again so that it is counted once.
fn verify(page: &mut Claim<'_>) {
    status::add(StatusWord::Checks, 1);
    if let Err(error) = page.check() {
        status::add(StatusWord::WrongStamps, 1);
        if status::get(StatusWord::WrongStamps) <= WRONG_STAMPS_PRINTED {
            println!("wrong stamp at {:#x}: {error:?}", page.address());
        }
        page.stamp();
    }
}
