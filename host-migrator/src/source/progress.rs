// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The status of a migration for other threads, and its cancellation.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::postcopy::orders::Orders;
use crate::panics::text_of;
use crate::report::events::{Events, MigrationEvent, TimedEvent};
use crate::report::probes;
use crate::report::stats::MigrationStatus;
use crate::source::params::Tuning;
use crate::wire::StopFlag;

const RUNNING: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// Called with the status whenever a migration enters another state.
pub(crate) type Observer = Box<dyn Fn(&MigrationStatus) + Send + Sync>;

/// Shared between the migration's thread and its handle.
pub(crate) struct Progress {
    started: Instant,
    /// This lock is held for a few stores, never across a call that may wait.
    status: Mutex<MigrationStatus>,
    events: Mutex<Events>,
    /// Decides between cancel and hand-over: exactly one of them wins.
    fate: AtomicU8,
    stop: StopFlag,
    observer: Observer,
    tuning: Mutex<Tuning>,
    /// The version of `tuning`. It only grows.
    tuned: AtomicU64,
    orders: Orders,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Progress {
    pub(crate) fn new(stop: StopFlag, tuning: Tuning, observer: Observer) -> Self {
        Self {
            started: Instant::now(),
            status: Mutex::default(),
            events: Mutex::default(),
            fate: AtomicU8::new(RUNNING),
            stop,
            observer,
            tuning: Mutex::new(tuning),
            tuned: AtomicU64::new(0),
            orders: Orders::default(),
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// What other threads want of a postcopy.
    pub(crate) fn orders(&self) -> &Orders {
        &self.orders
    }

    /// A copy of the status, with the time brought up to date.
    pub(crate) fn status(&self) -> MigrationStatus {
        let mut status = self.status.lock().clone();
        if !status.status.is_over() {
            status.total_time = self.started.elapsed().as_millis() as u64;
        }
        status
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut MigrationStatus)) {
        let mut status = self.status.lock();
        let before = status.status;
        change(&mut status);
        if status.status == before {
            return;
        }
        // The observer may take its time, and ask for the status.
        drop(status);
        let status = self.status();
        self.happened(MigrationEvent::Migration {
            status: status.status,
            error_desc: status.error_desc.clone(),
        });
        // Its faults do not stop the migration.
        let told = catch_unwind(AssertUnwindSafe(|| (self.observer)(&status)));
        if let Err(panic) = told {
            log::error!("the observer of a migration panicked: {}", text_of(&*panic));
        }
    }

    /// Tells those who watch the migration that `event` has happened.
    pub(crate) fn happened(&self, event: MigrationEvent) {
        probes::pass(&event);
        self.events.lock().add(self.started.elapsed(), event);
    }

    /// The first `most` events after that with this `number`.
    pub(crate) fn events_after(&self, number: u64, most: usize) -> Vec<TimedEvent> {
        self.events.lock().after(number, most)
    }

    /// What is in force of all that may be changed while the migration runs.
    pub(crate) fn tuning(&self) -> Tuning {
        *self.tuning.lock()
    }

    /// Changes it.
    pub(crate) fn tune<T>(&self, change: impl FnOnce(&mut Tuning) -> T) -> T {
        let mut tuning = self.tuning.lock();
        let value = change(&mut tuning);
        self.tuned.fetch_add(1, Ordering::Release);
        value
    }

    /// The tuning, if it has changed since version `known`, which is then that of now.
    pub(crate) fn tuning_after(&self, known: &mut u64) -> Option<Tuning> {
        let version = self.tuned.load(Ordering::Acquire);
        let before = std::mem::replace(known, version);
        (version != before).then(|| self.tuning())
    }

    /// How far the guest is throttled, in percent.
    pub(crate) fn throttle_percent(&self) -> u8 {
        self.status.lock().cpu_throttle_percentage
    }

    /// Asks the migration to stop. Returns `false` if it is too late: the guest has been handed over, or the
    /// migration was cancelled before.
    pub(crate) fn cancel(&self) -> bool {
        let won = self.decide(CANCELLED);
        if won {
            self.stop.raise();
        }
        won
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.fate.load(Ordering::Acquire) == CANCELLED
    }

    /// From now on a cancel is refused. Returns `false` if one came before.
    pub(crate) fn commit(&self) -> bool {
        self.decide(COMMITTED)
    }

    fn decide(&self, fate: u8) -> bool {
        self.fate
            .compare_exchange(RUNNING, fate, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}
