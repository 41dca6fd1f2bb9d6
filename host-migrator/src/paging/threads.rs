// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The threads that bring missing pages: those that answer faults, and one that loads what nobody waits for.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use spec::{PAGE_SIZE, PageRange};

use super::error::PagingError;
use super::latency::Latency;
use super::loader;
use super::missing::{MissingPages, Need};
use super::pager::Pager;
use super::prefault::Prefault;
use super::touched::TouchRecorder;
use crate::panics::text_of;

/// What happens once while missing pages are brought.
#[derive(Debug)]
#[non_exhaustive]
pub enum PagingEvent {
    /// Nothing is missing any more. The kernel answers all faults of this process again.
    Complete,
    /// Somebody waits for a page that cannot be brought, and waits for ever. The guest must not run on.
    Failed(PagingError),
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PagingStatus {
    /// Pages that had content and were missing at the beginning.
    pub pages: u64,
    /// Of these, pages that are still missing.
    pub missing: u64,
    /// Faults that were answered.
    pub faults: u64,
    /// Of these, faults that were answered with zeros.
    pub faults_zero: u64,
    /// Pages that were loaded although nobody waited for them.
    pub loaded: u64,
    /// Pages that could not be loaded. The guest runs until it needs one.
    pub damaged: u64,
    /// Microseconds from the moment when a fault was read to its answer, that half of the faults did not exceed.
    pub fault_p50_us: Option<f64>,
    /// The same for 99 of 100 faults.
    pub fault_p99_us: Option<f64>,
    /// Why the guest cannot run on.
    pub failure: Option<String>,
}

/// Brings missing pages until there are none. Ends its threads when it is dropped: whoever waits for a page of this process
/// then waits for ever.
pub struct Paging {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// How missing pages are brought.
#[derive(Debug)]
pub struct PagingOptions {
    /// Threads that answer faults.
    pub threads: NonZeroUsize,
    /// Pages that are loaded first, in this order. Any number is allowed.
    pub first: Vec<u64>,
    /// Writes down which pages were asked for.
    pub touches: Option<TouchRecorder>,
}

/// Two threads: one can wait for the disk while the other answers from the page cache.
impl Default for PagingOptions {
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::MIN.saturating_add(1),
            first: Vec::new(),
            touches: None,
        }
    }
}

/// What the threads share.
pub(super) struct Shared {
    pub(super) missing: MissingPages,
    pub(super) pager: Arc<dyn Pager>,
    told: Box<dyn Fn(PagingEvent) + Send + Sync>,
    /// Readable when the threads are to end.
    ended: OwnedFd,
    has_ended: AtomicBool,
    is_complete: AtomicBool,
    /// Faults that are being answered now.
    pub(super) busy: AtomicUsize,
    /// The page after the last fault: the guest is likely to go on there. `u64::MAX` if that was used.
    pub(super) near: AtomicU64,
    /// Pages to be loaded first.
    pub(super) first: Vec<u64>,
    touches: Option<TouchRecorder>,
    pub(super) prefault: Mutex<Prefault>,
    pub(super) prefault_changed: Condvar,
    latency: Latency,
    faults: AtomicU64,
    zeros: AtomicU64,
    pub(super) loaded: AtomicU64,
    pub(super) damaged: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Paging {
    /// Starts threads that answer the faults in `missing` with what `pager` says, and one that loads the rest at the pace of
    /// [`Paging::set_prefault`], which is off at first. `told` is called from any of them, or from here if nothing is missing.
    ///
    /// # Errors
    /// [`PagingError`] if a thread cannot be started.
    pub fn start(
        missing: MissingPages,
        pager: Arc<dyn Pager>,
        options: PagingOptions,
        told: Box<dyn Fn(PagingEvent) + Send + Sync>,
    ) -> Result<Self, PagingError> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            missing,
            pager,
            told,
            ended: ended.map_err(|error| PagingError::Thread(error.into()))?,
            has_ended: AtomicBool::new(false),
            is_complete: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            near: AtomicU64::new(u64::MAX),
            first: options.first,
            touches: options.touches,
            prefault: Mutex::new(Prefault::Off),
            prefault_changed: Condvar::new(),
            latency: Latency::new(),
            faults: AtomicU64::new(0),
            zeros: AtomicU64::new(0),
            loaded: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let mut paging = Self {
            shared,
            threads: Vec::new(),
        };
        paging.shared.complete_if_nothing_is_missing();
        for number in 0..options.threads.get() {
            paging.spawn(format!("fault-{number}"), Shared::answer_faults)?;
        }
        paging.spawn("loader".into(), loader::load)?;
        Ok(paging)
    }

    fn spawn(
        &mut self,
        name: String,
        work: fn(&Shared) -> Result<(), PagingError>,
    ) -> Result<(), PagingError> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| work(&shared)));
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.fail(error),
                Err(panic) => shared.fail(PagingError::Panicked(text_of(&*panic))),
            }
        });
        self.threads.push(thread.map_err(PagingError::Thread)?);
        Ok(())
    }

    /// The missing pages, to discard some.
    pub fn discard(&self, range: PageRange) {
        self.shared.missing.discard(range);
        self.shared.complete_if_nothing_is_missing();
    }

    /// Changes the pace at which pages are loaded that nobody waits for.
    pub fn set_prefault(&self, prefault: Prefault) {
        *self.shared.prefault.lock() = prefault;
        self.shared.prefault_changed.notify_all();
    }

    /// The pace.
    pub fn prefault(&self) -> Prefault {
        *self.shared.prefault.lock()
    }

    /// Whether nothing is missing any more.
    pub fn is_complete(&self) -> bool {
        self.shared.is_complete.load(Ordering::Acquire)
    }

    /// How far it is.
    pub fn status(&self) -> PagingStatus {
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PagingStatus {
            pages: shared.missing.total(),
            missing: shared.missing.left(),
            faults: count(&shared.faults),
            faults_zero: count(&shared.zeros),
            loaded: count(&shared.loaded),
            damaged: count(&shared.damaged),
            fault_p50_us: shared.latency.quantile_us(0.5),
            fault_p99_us: shared.latency.quantile_us(0.99),
            failure: shared.failure.lock().clone(),
        }
    }
}

impl std::fmt::Debug for Paging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Paging").field(&self.status()).finish()
    }
}

impl Drop for Paging {
    fn drop(&mut self) {
        self.shared.end();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
        self.shared.touches.iter().for_each(TouchRecorder::flush);
        if !self.is_complete() && self.shared.missing.ends() {
            // If the descriptor were closed, whoever waits for a page would go on with zeros.
            std::mem::forget(Arc::clone(&self.shared));
        }
    }
}

impl Shared {
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    fn end(&self) {
        let prefault = self.prefault.lock();
        self.has_ended.store(true, Ordering::Release);
        drop(prefault);
        self.prefault_changed.notify_all();
        // Its counter cannot overflow, and nothing else can fail.
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
    }

    /// A page that somebody needs cannot be brought.
    pub(super) fn fail(&self, error: PagingError) {
        if self.is_complete.load(Ordering::Acquire) {
            return log::warn!("after all pages were there: {error}");
        }
        let mut failure = self.failure.lock();
        if failure.is_some() {
            return log::error!("{error}");
        }
        *failure = Some(error.to_string());
        drop(failure);
        (self.told)(PagingEvent::Failed(error));
    }

    pub(super) fn complete_if_nothing_is_missing(&self) {
        let all_here = self.missing.left() == 0 && self.missing.ends();
        if all_here && !self.is_complete.swap(true, Ordering::AcqRel) {
            // First, so that nobody waits with the descriptor.
            self.end();
            self.touches.iter().for_each(TouchRecorder::flush);
            self.missing.let_go();
            (self.told)(PagingEvent::Complete);
        }
    }

    /// A thread that answers faults.
    fn answer_faults(&self) -> Result<(), PagingError> {
        let mut faults = Vec::new();
        let mut content = vec![0; PAGE_SIZE as usize];
        while self.wait()? {
            self.missing.read_faults(&mut faults)?;
            while let Some(address) = faults.pop() {
                self.busy.fetch_add(1, Ordering::AcqRel);
                let answered = self.answer(address, &mut content, &mut faults);
                self.busy.fetch_sub(1, Ordering::AcqRel);
                match answered {
                    Ok(()) => self.complete_if_nothing_is_missing(),
                    Err(PagingError::Gone) => return Err(PagingError::Gone),
                    // Others wait for other pages.
                    Err(error) => self.fail(error),
                }
            }
        }
        Ok(())
    }

    /// Waits for a fault. False if the threads are to end.
    fn wait(&self) -> Result<bool, PagingError> {
        let Some(uffd) = self.missing.uffd() else {
            return Ok(false);
        };
        let mut waits = [
            PollFd::new(&*uffd, PollFlags::IN),
            PollFd::new(&self.ended, PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(PagingError::Read(error.into())),
        }
        if self.has_ended() {
            return Ok(false);
        }
        let events = waits[0].revents();
        if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Err(PagingError::Gone);
        }
        Ok(true)
    }

    fn answer(
        &self,
        address: u64,
        content: &mut [u8],
        faults: &mut Vec<u64>,
    ) -> Result<(), PagingError> {
        let began = Instant::now();
        // What was discarded meanwhile must be read before the kernel takes pages again. The faults that are read with it are
        // answered next.
        let mut refused = || self.missing.read_faults(faults);
        match self.missing.need(address) {
            // A mapping of another process that is not known here.
            None => return Err(PagingError::Unmapped(address)),
            Some(Need::Patience) => return Ok(()),
            Some(Need::Zero) => {
                self.zeros.fetch_add(1, Ordering::Relaxed);
                self.missing.zero(address, &mut refused)?;
            }
            Some(Need::Content(page)) => {
                self.near.store(page + 1, Ordering::Relaxed);
                self.touches.iter().for_each(|touches| touches.note(page));
                let Some(range) = PageRange::new(page, 1) else {
                    return Ok(());
                };
                match self.pager.read(range, content) {
                    Ok(()) => self.missing.place(range, content, &mut refused)?,
                    // It was discarded before its content could be read, and is zero.
                    Err(_) if !self.missing.is_absent(page) => self.missing.wake_all(range)?,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.latency.record(began.elapsed());
        Ok(())
    }
}
