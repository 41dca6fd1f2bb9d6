// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the threads that bring missing pages share, and what they say.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::asked::Asked;
use super::error::PagingError;
use super::latency::Latency;
use super::missing::MissingPages;
use super::pager::Origin;
use super::prefault::Prefault;
use super::touched::TouchRecorder;

/// What happens once while missing pages are brought.
#[derive(Debug)]
#[non_exhaustive]
pub enum PagingEvent {
    /// Nothing is missing any more. The kernel answers all faults of this process again.
    Complete,
    /// Somebody waits for a page that cannot be brought, and waits for ever. The guest must not run on.
    Failed(PagingError),
}

/// What the threads share.
pub(super) struct Shared {
    pub(super) missing: MissingPages,
    pub(super) origin: Origin,
    /// Pages that a peer was asked for.
    pub(super) asked: Asked,
    pub(super) told: Box<dyn Fn(PagingEvent) + Send + Sync>,
    /// Readable when the threads are to end.
    pub(super) ended: OwnedFd,
    pub(super) has_ended: AtomicBool,
    pub(super) is_complete: AtomicBool,
    /// Faults that are being answered now.
    pub(super) busy: AtomicUsize,
    /// The page after the last fault: the guest is likely to go on there. `u64::MAX` if that was used.
    pub(super) near: AtomicU64,
    /// Pages to be loaded first.
    pub(super) first: Vec<u64>,
    pub(super) touches: Option<TouchRecorder>,
    pub(super) prefault: Mutex<Prefault>,
    pub(super) prefault_changed: Condvar,
    pub(super) latency: Latency,
    pub(super) faults: AtomicU64,
    pub(super) zeros: AtomicU64,
    pub(super) loaded: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) failure: Mutex<Option<String>>,
}

impl Shared {
    /// Nothing is loaded yet that nobody waits for.
    pub(super) fn new(
        missing: MissingPages,
        origin: Origin,
        first: Vec<u64>,
        touches: Option<TouchRecorder>,
        told: Box<dyn Fn(PagingEvent) + Send + Sync>,
    ) -> Result<Self, PagingError> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            missing,
            origin,
            asked: Asked::default(),
            told,
            ended: ended.map_err(|error| PagingError::Thread(error.into()))?,
            has_ended: AtomicBool::new(false),
            is_complete: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            near: AtomicU64::new(u64::MAX),
            first,
            touches,
            prefault: Mutex::new(Prefault::Off),
            prefault_changed: Condvar::new(),
            latency: Latency::new(),
            faults: AtomicU64::new(0),
            zeros: AtomicU64::new(0),
            loaded: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            failure: Mutex::new(None),
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
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
}
