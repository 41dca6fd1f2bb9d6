// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads with a device and a sandbox of their own.
//!
//! A thread passes both on to the threads that it starts: the device that it works for, which each line of the log names,
//! and its sandbox.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::sandbox::seccomp::{Filters, Group};

#[derive(Clone, Debug, Default)]
struct Context {
    device: Option<Arc<str>>,
    filters: Option<Arc<Filters>>,
}

thread_local! {
    static CONTEXT: RefCell<Context> = RefCell::default();
}

/// Starts a thread for the purpose of `group`.
///
/// # Errors
/// If there can be no more threads.
pub fn spawn<T: Send + 'static>(
    group: Group,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let context = CONTEXT.with_borrow(Context::clone);
    Builder::new().name(group.name().into()).spawn(move || {
        CONTEXT.set(context);
        confine(group);
        work()
    })
}

/// Restricts the calling thread, and those that it starts, to what `group` needs, if the process is in a sandbox.
pub fn confine(group: Group) {
    let filters = CONTEXT.with_borrow(|context| context.filters.clone());
    if let Some(filters) = filters
        && let Err(error) = filters.confine_thread(group)
    {
        // What the whole process may not do, it may not do either.
        log::warn!(
            "the thread '{}' keeps the filter of all: {error}",
            group.name()
        );
    }
}

/// Says that the process is in a sandbox with these filters.
pub fn set_filters(filters: Option<Arc<Filters>>) {
    CONTEXT.with_borrow_mut(|context| context.filters = filters);
}

/// Works for `device` from now on, or for none.
pub fn set_device(device: Option<Arc<str>>) {
    CONTEXT.with_borrow_mut(|context| context.device = device);
}

/// The device that the calling thread works for.
pub fn device() -> Option<Arc<str>> {
    // A thread that ends may still have something to say.
    CONTEXT
        .try_with(|context| context.try_borrow().ok()?.device.clone())
        .ok()?
}
