// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's dirty rings as a dirty log: the vCPUs' writes, page by page, instead of a bitmap of all memory.
//!
//! A harvest takes time for what was written and not for the size of memory, and it is known which vCPU has written how much. A
//! vCPU whose ring is full waits until it was emptied. KVM has rings or bitmaps for a machine, never both.

mod mapping;
mod rings;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use host_migrator::{DirtyLog, DirtyLogError, LogSource, MigrationBitmap, Trace};
use parking_lot::{Condvar, Mutex};
use spec::trace::Event;

pub use self::rings::{DirtyRings, RING_ENTRIES};
use crate::slots::MemorySlots;

/// How often the rings are emptied while nobody harvests them, so that few vCPUs find theirs full.
const INTERVAL: Duration = Duration::from_secs(1);

/// The log of the vCPUs' writes in rings.
#[derive(Debug)]
pub struct RingDirtyLog {
    rings: Arc<DirtyRings>,
    slots: Arc<MemorySlots>,
    trace: Trace,
    emptier: Option<Emptier>,
}

impl RingDirtyLog {
    /// The log of `slots` in `rings`. It is off until [`DirtyLog::start`].
    pub fn new(rings: Arc<DirtyRings>, slots: Arc<MemorySlots>) -> Self {
        Self {
            rings,
            slots,
            trace: Trace::default(),
            emptier: None,
        }
    }

    /// This log, which records in `trace` the pages that it arms.
    pub fn recorded(self, trace: &Trace) -> Self {
        Self {
            trace: trace.clone(),
            ..self
        }
    }
}

impl DirtyLog for RingDirtyLog {
    fn source(&self) -> LogSource {
        LogSource::Kvm
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        // KVM protects all pages now, if the log was off.
        (self.slots.set_logging(true)).map_err(|e| failed("be started", e))?;
        // And now those that were written since an earlier start.
        self.rings.forget().map_err(|e| failed("be cleared", e))?;
        for pages in self.slots.pages() {
            self.trace.record(Event::Armed(*pages));
        }
        if self.emptier.is_none() {
            let emptier = Emptier::start(&self.rings);
            self.emptier = Some(emptier.map_err(|e| failed("get a thread", e))?);
        }
        Ok(())
    }

    /// A processor that keeps a buffer of written pages (Intel's PML) writes it into the ring when its vCPU leaves the guest. Until
    /// then these pages are in the log, and in a later harvest. A guest that is stopped has left nothing there.
    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        let taken = self.rings.harvest(bitmap);
        taken.map_err(|e| failed("be harvested", e))
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.emptier = None;
        (self.slots.set_logging(false)).map_err(|e| failed("be stopped", e))
    }
}

fn failed(action: &'static str, source: io::Error) -> DirtyLogError {
    DirtyLogError {
        log: LogSource::Kvm,
        action,
        source,
    }
}

/// A thread that empties the rings. It ends when this is dropped.
#[derive(Debug)]
struct Emptier {
    ends: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Emptier {
    fn start(rings: &Arc<DirtyRings>) -> io::Result<Self> {
        let ends = Arc::<(Mutex<bool>, Condvar)>::default();
        let (rings, ending) = (Arc::clone(rings), Arc::clone(&ends));
        let empty = move || {
            let (ends, changed) = &*ending;
            let mut ends = ends.lock();
            while !*ends {
                if !changed.wait_for(&mut ends, INTERVAL).timed_out() {
                    continue;
                }
                let emptied = parking_lot::MutexGuard::unlocked(&mut ends, || rings.empty());
                if let Err(error) = emptied {
                    // A vCPU whose ring is full tries, too, and a harvest fails.
                    log::warn!("the dirty rings cannot be emptied: {error}");
                }
            }
        };
        let thread = thread::Builder::new().name("dirty-rings".into());
        Ok(Self {
            ends,
            thread: Some(thread.spawn(empty)?),
        })
    }
}

impl Drop for Emptier {
    fn drop(&mut self) {
        *self.ends.0.lock() = true;
        self.ends.1.notify_all();
        // A thread that panicked has printed why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
