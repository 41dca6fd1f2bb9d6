// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The clock of decisions about convergence.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What time it is, for decisions that are made after some time. A test can have its own, and need not wait.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// A clock that shows what `now` returns: the time since any moment.
    pub fn of(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time since a moment of the clock's own.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

/// The machine's clock, which never goes back.
impl Default for Clock {
    fn default() -> Self {
        let start = Instant::now();
        Self::of(move || start.elapsed())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}
