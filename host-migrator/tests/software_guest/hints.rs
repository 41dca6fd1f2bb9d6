// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hint source in this process, and the guest's side of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use host_migrator::{HintError, HintSource, MigrationBitmap, Trace};
use spec::PageRange;
use spec::control::{EpochReport, PageSet};
use spec::hint_map::{HintBits, HintMap, HintPhase, Tellers, Words, bytes_for};
use spec::trace::Event;
use spec::trace::event::Hinted;

/// What the guest does when an epoch opens.
type OnOpen = Box<dyn FnMut(u64) + Send>;

pub struct SoftHints {
    map: HintMap<OwnWords>,
    trace: Trace,
    /// The barrier: held while a hint is taken and while the epoch is being closed.
    gate: Mutex<()>,
    on_open: Mutex<Option<OnOpen>>,
    /// What the guest still does before the device closes an epoch.
    on_close: Mutex<Option<OnOpen>>,
    on_done: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// The pages in the balloon, and the reported ones.
    given_up: Mutex<[Vec<PageRange>; 2]>,
    /// Whether the device disconnects at the next close.
    pub fail_to_close: AtomicBool,
    pub done: AtomicU64,
}

struct OwnWords(Box<[AtomicU64]>);

impl Words for OwnWords {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.0.get(index)
    }
}

impl SoftHints {
    pub fn new(pages: u64, trace: Trace) -> Self {
        let words = bytes_for(pages).unwrap() / 8;
        let words = OwnWords(bytemuck::zeroed_slice_box(words as usize));
        Self {
            map: HintMap::format(words, pages).unwrap(),
            trace,
            gate: Mutex::default(),
            on_open: Mutex::default(),
            on_close: Mutex::default(),
            on_done: Mutex::default(),
            given_up: Mutex::default(),
            fail_to_close: AtomicBool::default(),
            done: AtomicU64::default(),
        }
    }

    pub fn on_open(&self, action: impl FnMut(u64) + Send + 'static) {
        *self.on_open.lock().unwrap() = Some(Box::new(action));
    }

    /// Sets what the guest does when the walk of an epoch is over and before the device closes it.
    pub fn on_close(&self, action: impl FnMut(u64) + Send + 'static) {
        *self.on_close.lock().unwrap() = Some(Box::new(action));
    }

    /// Sets what happens when the guest is told DONE.
    pub fn on_done(&self, action: impl FnOnce() + Send + 'static) {
        *self.on_done.lock().unwrap() = Some(Box::new(action));
    }

    /// The open epoch; 0 if none is open.
    pub fn epoch(&self) -> u64 {
        self.map.epoch()
    }

    /// The guest has given up this memory.
    pub fn has_given_up(&self, ballooned: PageRange, reported: PageRange) {
        *self.given_up.lock().unwrap() = [vec![ballooned], vec![reported]];
    }

    /// The guest's driver hints `pages`. Ignored if no epoch is open or the driver was not asked.
    pub fn hint(&self, pages: PageRange) {
        self.take_hint(pages, self.map.asked().driver, HintMap::insert);
    }

    /// The guest's agent reports `pages`.
    pub fn hint_by_agent(&self, pages: PageRange) {
        self.take_hint(pages, self.map.asked().agent, HintMap::insert_of_agent);
    }

    fn take_hint(
        &self,
        pages: PageRange,
        asked: bool,
        insert: fn(&HintMap<OwnWords>, PageRange) -> u64,
    ) {
        let _gate = self.gate.lock().unwrap();
        let epoch = self.map.epoch();
        if epoch != 0 && asked {
            self.map.set_phase(HintPhase::Running);
            self.trace.record(Event::Hint(Hinted { epoch, pages }));
            insert(&self.map, pages);
        }
    }

    /// The agent has reported on all pages below `page`.
    pub fn has_answered(&self, page: u64) {
        self.map.set_answered(page);
    }

    /// The guest has hinted all that is free.
    pub fn finish(&self) {
        let _gate = self.gate.lock().unwrap();
        if self.map.epoch() != 0 {
            self.map.set_phase(HintPhase::Finished);
        }
    }
}

/// The engine's side of it.
pub struct HintsForEngine(pub Arc<SoftHints>);

impl HintSource for HintsForEngine {
    fn prepare(&mut self, pages: u64, tellers: Tellers) -> Result<(), HintError> {
        assert_eq!(pages, self.0.map.pages());
        self.0.map.ask(tellers);
        self.0.map.take_all(|_, _| ());
        Ok(())
    }

    fn open(&mut self, epoch: u64) -> Result<(), HintError> {
        self.0.trace.record(Event::Published(epoch));
        self.0.map.begin(epoch, HintPhase::Requested);
        if let Some(action) = &mut *self.0.on_open.lock().unwrap() {
            action(epoch);
        }
        Ok(())
    }

    fn load(&self, index: usize) -> HintBits {
        self.0.map.load(index)
    }

    fn hinted_words(&self, found: &mut dyn FnMut(usize)) {
        self.0.map.hinted_words(found);
    }

    fn phase(&self) -> HintPhase {
        self.0.map.phase()
    }

    fn hinted_pages(&self) -> u64 {
        self.0.map.hinted_pages()
    }

    fn answered(&self) -> u64 {
        self.0.map.answered()
    }

    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError> {
        if self.0.fail_to_close.load(Ordering::Acquire) {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        if let Some(action) = &mut *self.0.on_close.lock().unwrap() {
            action(epoch);
        }
        let _gate = self.0.gate.lock().unwrap();
        let report = EpochReport {
            epoch,
            phase: self.0.map.phase(),
            pages: self.0.map.hinted_pages(),
            ..EpochReport::default()
        };
        self.0.map.end(HintPhase::Closed);
        self.0.trace.record(Event::DeviceClosed(epoch));
        Ok(report)
    }

    fn take_all(&mut self, told: &mut dyn FnMut(usize, HintBits)) {
        self.0.map.take_all(told);
    }

    fn given_up(
        &mut self,
        set: PageSet,
        memory: &[PageRange],
    ) -> Result<MigrationBitmap, HintError> {
        let given_up = self.0.given_up.lock().unwrap();
        let bitmap = MigrationBitmap::new(memory.last().unwrap().end());
        let ranges = match set {
            PageSet::Ballooned => &given_up[0],
            PageSet::Reported => &given_up[1],
            PageSet::Hinted => panic!("nobody asks for hints so"),
        };
        ranges.iter().for_each(|range| bitmap.insert(*range));
        Ok(bitmap)
    }

    fn done(&mut self) -> Result<(), HintError> {
        let _gate = self.0.gate.lock().unwrap();
        self.0.map.end(HintPhase::Done);
        self.0.done.fetch_add(1, Ordering::AcqRel);
        if let Some(action) = self.0.on_done.lock().unwrap().take() {
            action();
        }
        Ok(())
    }
}
