// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long a vCPU waits for a word of its memory. A page that the host has to bring first, or memory that is slow, shows here.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spec::PAGE_SHIFT;
use spec::bare::{GAPS_BYTES, PageState, READ_TIMES_GPA};
use spec::gaps::{BEAT_MICROS, ReadTimes};
use spec::histogram::BINS;
use spec::stamp::Random;

use crate::memory::Memory;
use crate::time::{self, Clock, Ticks};

/// How many pages are tried until one is in use.
const TRIES: u32 = 8;

/// Times the reads of one vCPU.
#[derive(Debug)]
pub struct Reads<'m> {
    memory: &'m Memory,
    bins: &'static [AtomicU32; BINS],
    clock: Clock,
    random: Random,
    last: Ticks,
    interval: Ticks,
}

impl<'m> Reads<'m> {
    /// The reads of `vcpu` from `memory`, at places chosen by `seed`.
    pub fn new(memory: &'m Memory, vcpu: u64, clock: Clock, seed: u64) -> Self {
        let gpa = READ_TIMES_GPA + vcpu * GAPS_BYTES;
        Self {
            memory,
            // SAFETY: the ABI reserves this place for the bins of this vCPU, memory is mapped one to one, and all access to
            // them is atomic.
            bins: unsafe { &*with_exposed_provenance(gpa as usize) },
            clock,
            random: Random::new(seed),
            last: time::now(),
            interval: clock.micros(BEAT_MICROS),
        }
    }

    /// Reads a word of a random page in use, if that is due.
    pub fn step(&mut self) {
        let now = time::now();
        if now.wrapping_sub(self.last) < self.interval {
            return;
        }
        self.last = now;
        for _ in 0..TRIES {
            let index = self.random.below(self.memory.pages());
            if self.memory.is(index, PageState::InUse) {
                let ticks = ticks_to_read(self.memory.map().frame(index) << PAGE_SHIFT);
                let bin = ReadTimes::bin_of(self.clock.to_nanos(ticks));
                self.bins[bin].fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// How long it takes to read the word at `address`, which is in a managed page. What it is does not matter.
fn ticks_to_read(address: u64) -> Ticks {
    let word: *const AtomicU64 = with_exposed_provenance(address as usize);
    fence();
    let before = time::now();
    fence();
    // SAFETY: a managed page is memory that is mapped one to one, and it starts with a word. Another vCPU may write it meanwhile, as
    // hardware allows; the value is dropped.
    let _ = core::hint::black_box(unsafe { &*word }.load(Ordering::Relaxed));
    fence();
    time::now().saturating_sub(before)
}

/// Waits until everything before it is done, reads of memory included, before anything after it begins.
fn fence() {
    // SAFETY: the instruction changes neither memory nor registers, and every x86-64 processor has it.
    unsafe { asm!("lfence", options(nostack, preserves_flags)) };
}
