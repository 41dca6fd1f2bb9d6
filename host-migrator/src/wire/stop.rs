// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What ends the waits of a connection besides its peer: a stop by another thread, and a deadline that no byte extends.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Both directions of a connection share it with whoever may end their waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopFlag(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    raised: AtomicBool,
    interrupted: AtomicBool,
    deadline: Mutex<Option<Deadline>>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    limit: Duration,
    what: &'static str,
}

impl StopFlag {
    pub(crate) fn raise(&self) {
        self.0.raised.store(true, Ordering::Release);
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    /// Ends all waits until [`StopFlag::go_on`]: something else has happened that the waiting thread has to hear of.
    pub(crate) fn interrupt(&self) {
        self.0.interrupted.store(true, Ordering::Release);
    }

    pub(crate) fn go_on(&self) {
        self.0.interrupted.store(false, Ordering::Release);
    }

    /// An error if the waits have been ended, for good or until [`StopFlag::go_on`].
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_raised() {
            Err(io::Error::new(ErrorKind::ConnectionAborted, "stopped"))
        } else if self.0.interrupted.load(Ordering::Acquire) {
            Err(Self::interruption())
        } else {
            Ok(())
        }
    }

    /// The error of a wait that was interrupted.
    pub(crate) fn interruption() -> io::Error {
        let text = "another connection of this migration has failed";
        io::Error::new(ErrorKind::ConnectionAborted, text)
    }

    /// From now on all waits together may take `limit`, whatever the peer sends or takes meanwhile. `what` names what
    /// must be done by then.
    pub(crate) fn set_deadline(&self, limit: Duration, what: &'static str) {
        let at = Instant::now().checked_add(limit);
        *self.0.deadline.lock() = at.map(|at| Deadline { at, limit, what });
    }

    pub(crate) fn clear_deadline(&self) {
        *self.0.deadline.lock() = None;
    }

    /// An error if the deadline has passed.
    pub(crate) fn check_deadline(&self) -> io::Result<()> {
        match *self.0.deadline.lock() {
            Some(Deadline { at, limit, what }) if Instant::now() >= at => {
                let text = format!("{what} was not done in {limit:?}");
                Err(io::Error::new(ErrorKind::TimedOut, text))
            }
            _ => Ok(()),
        }
    }
}
