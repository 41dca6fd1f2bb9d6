// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the threads of vCPUs wait while their guest is paused, or held because it is throttled.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::throttle::Slices;
use crate::vcpu_times::Watched;

/// How long a vCPU may take to park. It may have to wait for a device access to end, and for the host's scheduler.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the vCPUs are to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    #[default]
    Pause,
    Run,
    Quit,
}

/// The gate at which threads park, and what opens it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: Wanted,
    /// How many threads are parked.
    parked: usize,
    /// Whether the guest has ended, so that no vCPU runs again.
    ended: bool,
    /// When all vCPUs are held; none: they run at full speed.
    slices: Option<Slices>,
    /// When single vCPUs are held besides, by number.
    single: Vec<Option<Slices>>,
}

impl Gate {
    pub(crate) fn want(&self, wanted: Wanted) {
        self.state.lock().wanted = wanted;
        self.changed.notify_all();
    }

    /// Throttles all vCPUs from now on. None: they, and those that were throttled alone, run at full speed.
    pub(crate) fn throttle(&self, slices: Option<Slices>) {
        let mut state = self.state.lock();
        state.slices = slices;
        if slices.is_none() {
            state.single.clear();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Throttles vCPU `index` alone from now on.
    pub(crate) fn throttle_one(&self, index: usize, slices: Option<Slices>) {
        let mut state = self.state.lock();
        let count = state.single.len().max(index + 1);
        state.single.resize(count, None);
        state.single[index] = slices;
        drop(state);
        self.changed.notify_all();
    }

    /// No vCPU is throttled alone any more.
    pub(crate) fn release_single(&self) {
        self.state.lock().single.clear();
        self.changed.notify_all();
    }

    /// Parks the calling thread, that of vCPU `index`, until it must run (true) or quit (false), and holds it as long as it is throttled. `enter` is
    /// called before it may run, at a moment at which no pause comes. The time of its waits is noted in `watched`.
    pub(crate) fn pass(&self, index: usize, watched: &Watched, enter: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        loop {
            if !state.may_run() {
                let began = Instant::now();
                state.parked += 1;
                self.changed.notify_all();
                while !state.may_run() && state.wanted != Wanted::Quit {
                    self.changed.wait(&mut state);
                }
                state.parked -= 1;
                watched.was_paused(began.elapsed());
            }
            if !state.may_run() {
                return false;
            }
            let now = Instant::now();
            let Some(end) = state
                .slices_of(index)
                .and_then(|slices| slices.held_until(now))
            else {
                enter();
                return true;
            };
            self.changed.wait_until(&mut state, end);
            watched.was_throttled(now.elapsed());
        }
    }

    /// Calls `kick` whenever a hold of vCPU `index` begins, until the vCPUs quit.
    pub(crate) fn at_each_hold(&self, index: usize, mut kick: impl FnMut()) {
        let mut state = self.state.lock();
        while state.wanted != Wanted::Quit {
            let (Some(slices), true) = (state.slices_of(index), state.may_run()) else {
                self.changed.wait(&mut state);
                continue;
            };
            let now = Instant::now();
            let next = match slices.held_until(now) {
                // A hold that has begun without us.
                Some(_) => now,
                None => slices.next_hold(now),
            };
            while state.slices_of(index) == Some(slices) && state.may_run() && Instant::now() < next
            {
                self.changed.wait_until(&mut state, next);
            }
            if state.slices_of(index) != Some(slices) || !state.may_run() {
                continue;
            }
            parking_lot::MutexGuard::unlocked(&mut state, &mut kick);
            // One kick for each hold.
            while state.slices_of(index) == Some(slices) && state.may_run() {
                match slices.held_until(Instant::now()) {
                    Some(end) => self.changed.wait_until(&mut state, end),
                    None => break,
                };
            }
        }
    }

    /// Sleeps for `duration`, or until the calling thread must park or quit.
    pub(crate) fn sleep(&self, duration: Duration) {
        let end = Instant::now() + duration;
        let mut state = self.state.lock();
        while state.may_run() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.changed.wait_for(&mut state, left);
        }
    }

    /// Waits until `count` threads are parked. Returns how many are missing after a time that should be enough.
    pub(crate) fn wait_parked(&self, count: usize) -> usize {
        let mut state = self.state.lock();
        self.changed
            .wait_while_for(&mut state, |state| state.parked < count, PATIENCE);
        count - state.parked
    }

    /// The guest has ended.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }
}

impl State {
    fn may_run(&self) -> bool {
        self.wanted == Wanted::Run && !self.ended
    }

    /// When vCPU `index` is held.
    fn slices_of(&self, index: usize) -> Option<Slices> {
        let single = self.single.get(index).copied().flatten();
        match (self.slices, single) {
            (Some(all), Some(single)) => Some(all.longer_held(single)),
            (all, single) => all.or(single),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread::{self, JoinHandle};

    use super::*;
    use spec_testing::eventually;

    /// Threads that count how often they pass the gate.
    struct Rig {
        gate: Arc<Gate>,
        passes: Arc<AtomicU64>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Rig {
        fn new() -> Self {
            let (gate, passes) = (Arc::<Gate>::default(), Arc::<AtomicU64>::default());
            let threads = (0..3).map(|index| {
                let (gate, passes) = (Arc::clone(&gate), Arc::clone(&passes));
                thread::spawn(move || {
                    let watched = Watched::new(None);
                    while gate.pass(index, &watched, || ()) {
                        passes.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                })
            });
            Self {
                threads: threads.collect(),
                gate,
                passes,
            }
        }

        fn passes(&self) -> u64 {
            self.passes.load(Ordering::SeqCst)
        }

        fn goes_on(&self) {
            let before = self.passes();
            eventually("a thread that passes", || {
                (self.passes() > before + 10).then_some(())
            });
        }

        /// Holds all threads for longer than the test.
        fn hold(&self) {
            (self.gate).throttle(Some(Slices::hold_from(Instant::now())));
        }

        fn end(self) {
            self.gate.want(Wanted::Quit);
            self.threads.into_iter().for_each(|it| it.join().unwrap());
        }
    }

    #[test]
    fn threads_that_are_held_park_at_once_and_are_held_afterwards() {
        let rig = Rig::new();
        rig.gate.want(Wanted::Run);
        rig.goes_on();
        rig.hold();
        rig.gate.want(Wanted::Pause);
        assert_eq!(rig.gate.wait_parked(3), 0);
        let passes = rig.passes();
        rig.gate.want(Wanted::Run);
        rig.gate.want(Wanted::Pause);
        assert_eq!(rig.gate.wait_parked(3), 0);
        assert_eq!(rig.passes(), passes);
        rig.end();
    }

    #[test]
    fn threads_that_are_held_go_on_at_once_at_full_speed() {
        let rig = Rig::new();
        rig.gate.want(Wanted::Run);
        rig.hold();
        rig.gate.throttle(None);
        rig.goes_on();
        rig.end();
    }

    #[test]
    fn threads_that_are_held_quit_at_once() {
        let rig = Rig::new();
        rig.gate.want(Wanted::Run);
        rig.hold();
        rig.end();
    }

    #[test]
    fn a_thread_that_is_held_alone_does_not_hold_the_others() {
        let rig = Rig::new();
        let hold = Slices::hold_from(Instant::now());
        (0..2).for_each(|index| rig.gate.throttle_one(index, Some(hold)));
        rig.gate.want(Wanted::Run);
        rig.goes_on();
        rig.gate.throttle_one(2, Some(hold));
        let mut before = rig.passes();
        eventually("nobody to pass", || {
            let now = std::mem::replace(&mut before, rig.passes());
            thread::sleep(Duration::from_millis(5));
            (now == rig.passes()).then_some(())
        });
        rig.gate.throttle(None);
        rig.goes_on();
        rig.end();
    }

    #[test]
    fn each_hold_is_announced_while_the_guest_runs() {
        let rig = Rig::new();
        let kicks = Arc::<AtomicU64>::default();
        let thread = {
            let (gate, kicks) = (Arc::clone(&rig.gate), Arc::clone(&kicks));
            thread::spawn(move || {
                gate.at_each_hold(0, || {
                    kicks.fetch_add(1, Ordering::SeqCst);
                });
            })
        };
        let kicked = |count| {
            eventually("a kick", || {
                (kicks.load(Ordering::SeqCst) >= count).then_some(())
            });
        };
        rig.hold();
        rig.gate.want(Wanted::Run);
        kicked(1);
        // One hold, and one kick for it.
        assert_eq!(kicks.load(Ordering::SeqCst), 1);
        rig.hold();
        kicked(2);
        rig.gate.throttle(None);
        rig.goes_on();
        rig.end();
        thread.join().unwrap();
    }
}
