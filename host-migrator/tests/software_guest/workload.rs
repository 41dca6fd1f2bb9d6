// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest does while it is migrated: it allocates, writes and frees pages, hints them, and reuses hinted pages
//! at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use spec::stamp::Random;

use super::Guest;
use super::memory::one;

/// A running guest.
pub struct Workload {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// How a guest behaves.
#[derive(Clone, Copy)]
pub struct Behaviour {
    pub seed: u64,
    /// It answers when it is asked for its free pages.
    pub hints: bool,
    /// Microseconds of sleep after each step: they set how fast it dirties memory.
    pub pause: u64,
    /// It does not touch pages below this one.
    pub first_page: u64,
}

/// It writes all the time, and answers with its free pages.
pub const WRITES_AND_HINTS: Behaviour = Behaviour {
    seed: 12,
    hints: true,
    pause: 50,
    first_page: 0,
};

impl Workload {
    pub fn start(guest: &Arc<Guest>, behaviour: Behaviour) -> Self {
        let stop = Arc::new(AtomicBool::default());
        let steps = Arc::new(AtomicU64::default());
        guest.machine.add_vcpu();
        let thread = {
            let (guest, stop, steps) = (Arc::clone(guest), Arc::clone(&stop), Arc::clone(&steps));
            thread::spawn(move || {
                run(&guest, behaviour, &stop, &steps);
                guest.machine.remove_vcpu();
            })
        };
        Self {
            stop,
            steps,
            thread: Some(thread),
        }
    }

    /// Steps done so far. The number grows while the guest runs.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Acquire)
    }

    /// Ends the guest. A migration under way must not have stopped it for good.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn run(guest: &Guest, behaviour: Behaviour, stop: &AtomicBool, steps: &AtomicU64) {
    let mut random = Random::new(behaviour.seed);
    let pages = guest.memory.pages();
    let pages: Vec<u64> = pages.filter(|pfn| *pfn >= behaviour.first_page).collect();
    let mut hinting = (0, 0);
    while !stop.load(Ordering::Acquire) && guest.machine.run_point() {
        steps.fetch_add(1, Ordering::AcqRel);
        let pfn = pages[random.below(pages.len() as u64) as usize];
        match (guest.memory.in_use(pfn), random.below(4)) {
            (true, 0) => guest.memory.free(pfn),
            (true, 1) => guest.write_by_vmm(pfn),
            (true, _) => guest.write(pfn),
            // Most allocations take a page that was just freed, and so hinted.
            (false, 0) => guest.write(pfn),
            (false, _) => {}
        }
        if behaviour.hints {
            hint_some(guest, &pages, &mut hinting);
        }
        if behaviour.pause > 0 {
            thread::sleep(std::time::Duration::from_micros(behaviour.pause));
        }
    }
}

/// Hints the free pages among the next few in the open epoch.
fn hint_some(guest: &Guest, pages: &[u64], (epoch, next): &mut (u64, usize)) {
    let open = guest.hints.epoch();
    if open == 0 {
        return;
    }
    if open != *epoch {
        (*epoch, *next) = (open, 0);
    }
    let end = pages.len().min(*next + 64);
    for pfn in &pages[*next..end] {
        if !guest.memory.in_use(*pfn) {
            guest.hints.hint(one(*pfn));
        }
    }
    *next = end;
    if end == pages.len() {
        guest.hints.finish();
    }
}
