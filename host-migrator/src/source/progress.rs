// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The status of a migration for other threads, and its cancellation.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::report::stats::MigrationStatus;
use crate::wire::StopFlag;

const RUNNING: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// Shared between the migration's thread and its handle.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    /// This lock is held for a few stores, never across a call that may wait.
    status: Mutex<MigrationStatus>,
    /// Decides between cancel and hand-over: exactly one of them wins.
    fate: AtomicU8,
    stop: StopFlag,
}

impl Progress {
    pub(crate) fn new(stop: StopFlag) -> Self {
        Self {
            started: Instant::now(),
            status: Mutex::default(),
            fate: AtomicU8::new(RUNNING),
            stop,
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
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
        change(&mut self.status.lock());
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
