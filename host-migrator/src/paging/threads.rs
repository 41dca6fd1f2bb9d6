// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The threads that bring missing pages: those that answer faults, and one that loads what nobody waits for.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};
use spec::PageRange;

use super::asked::WaitingFor;
use super::error::PagingError;
use super::latency::Waits;
use super::loader;
use super::missing::MissingPages;
use super::pager::{Origin, PageRequests, Pager};
use super::prefault::Prefault;
use super::shared::{PagingEvent, Shared};
use super::touched::TouchRecorder;
use crate::panics::text_of;

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
    /// How many faults took how long.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Waits>,
    /// Pages that a peer was asked for and that have not come, at most 16 of them, the one that was asked for first before the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<WaitingFor>,
    /// Why the guest cannot run on.
    pub failure: Option<String>,
}

/// Brings missing pages until there are none. Ends its threads when it is dropped: whoever waits for a page of this process
/// then waits for ever.
pub struct Paging {
    pub(super) shared: Arc<Shared>,
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
        let origin = Origin::Pager(pager);
        let mut paging = Self::answering(missing, origin, options, told)?;
        paging.spawn("loader".into(), loader::load)?;
        Ok(paging)
    }

    /// As [`Paging::start`], for pages that `peer` is asked for, and that come by [`Paging::arrived`]. None is loaded here, so of the
    /// options only the threads count.
    ///
    /// # Errors
    /// As [`Paging::start`].
    pub fn start_from_peer(
        missing: MissingPages,
        peer: Arc<dyn PageRequests>,
        options: PagingOptions,
        told: Box<dyn Fn(PagingEvent) + Send + Sync>,
    ) -> Result<Self, PagingError> {
        Self::answering(missing, Origin::Peer(peer), options, told)
    }

    fn answering(
        missing: MissingPages,
        origin: Origin,
        options: PagingOptions,
        told: Box<dyn Fn(PagingEvent) + Send + Sync>,
    ) -> Result<Self, PagingError> {
        let shared = Shared::new(missing, origin, options.first, options.touches, told)?;
        let shared = Arc::new(shared);
        let mut paging = Self {
            shared,
            threads: Vec::new(),
        };
        paging.shared.complete_if_nothing_is_missing();
        for number in 0..options.threads.get() {
            paging.spawn(format!("fault-{number}"), Shared::answer_faults)?;
        }
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
        self.shared.let_go_on(range);
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
            waits: shared.latency.waits(),
            waiting_for: shared.asked.waiting_for(),
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
