// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest in simulated time: memory without content, and hints that are in the map once their time has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host_migrator::rule::{HintBits, Tellers};
use host_migrator::{GuestMemory, HintError, HintSource, Layout, RamError};
use spec::PageRange;
use spec::control::EpochReport;
use spec::hint_map::HintPhase;

/// The time in the simulation, in seconds. Copies show the same time.
#[derive(Clone, Debug)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// A clock that shows `now`.
    pub fn at(now: f64) -> Self {
        Self(Arc::new(AtomicU64::new(now.to_bits())))
    }

    /// What it shows.
    pub fn now(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Moves it on.
    pub fn advance(&self, seconds: f64) {
        let now = self.now() + seconds;
        self.0.store(now.to_bits(), Ordering::Relaxed);
    }
}

/// A figure that depends on the time.
pub type At<T> = Box<dyn Fn(f64) -> T + Send>;

/// The guest's hints.
pub struct Hints {
    clock: Clock,
    /// When all pages of each word are hinted; never, if that is infinite.
    hinted_at: Vec<f64>,
    /// The same times, sorted.
    arrivals: Vec<f64>,
    phase: At<HintPhase>,
    /// Pages hinted that are of no use.
    useless: At<u64>,
}

impl Hints {
    /// The hints of a guest that is in `phase` at a time, and has hinted so many `useless` pages by then.
    pub fn new(clock: &Clock, hinted_at: Vec<f64>, phase: At<HintPhase>, useless: At<u64>) -> Self {
        let mut arrivals = hinted_at.clone();
        arrivals.sort_by(f64::total_cmp);
        Self {
            clock: clock.clone(),
            hinted_at,
            arrivals,
            phase,
            useless,
        }
    }
}

impl HintSource for Hints {
    fn prepare(&mut self, _pages: u64, _tellers: Tellers) -> Result<(), HintError> {
        Ok(())
    }

    fn open(&mut self, _epoch: u64) -> Result<(), HintError> {
        Ok(())
    }

    fn load(&self, index: usize) -> HintBits {
        match self.hinted_at[index] <= self.clock.now() {
            true => HintBits {
                driver: u64::MAX,
                agent: 0,
            },
            false => HintBits::default(),
        }
    }

    fn phase(&self) -> HintPhase {
        (self.phase)(self.clock.now())
    }

    fn hinted_pages(&self) -> u64 {
        let now = self.clock.now();
        let words = self.arrivals.partition_point(|at| *at <= now);
        words as u64 * 64 + (self.useless)(now)
    }

    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError> {
        Ok(EpochReport {
            epoch,
            ..EpochReport::default()
        })
    }

    fn take_all(&mut self, _told: &mut dyn FnMut(usize, HintBits)) {
        unreachable!("there is one epoch, and it stays open")
    }

    fn done(&mut self) -> Result<(), HintError> {
        Ok(())
    }
}

/// Guest memory without content.
pub struct Memory(Layout);

impl Memory {
    /// So many pages.
    pub fn of(pages: u64) -> Self {
        let region = PageRange::new(0, pages).expect("some pages");
        Self(Layout::new(vec![region]).expect("one region"))
    }
}

impl GuestMemory for Memory {
    fn layout(&self) -> &Layout {
        &self.0
    }

    fn read(&self, range: PageRange, _out: &mut [u8]) -> Result<(), RamError> {
        self.0.check(range).map(|_| ())
    }

    fn write(&self, _range: PageRange, _content: &[u8]) -> Result<(), RamError> {
        unreachable!("a source does not write")
    }

    fn discard(&self, _range: PageRange) -> Result<(), RamError> {
        unreachable!("a source does not discard")
    }
}
