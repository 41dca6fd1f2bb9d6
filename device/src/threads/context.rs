// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that know their device and their sandbox.
//!
//! A thread hands both to the threads that it starts. The log names a thread's device in each line.

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

/// Starts a thread of `group`.
///
/// # Errors
/// If the system allows no more threads.
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

/// Restricts the calling thread, and the threads that it starts, to what `group` needs, if the process is in a sandbox.
pub fn confine(group: Group) {
    let filters = CONTEXT.with_borrow(|context| context.filters.clone());
    if let Some(filters) = filters
        && let Err(error) = filters.confine_thread(group)
    {
        // A failure is safe: the thread keeps the process's filter.
        log::warn!(
            "the thread '{}' keeps the process's filter: {error}",
            group.name()
        );
    }
}

/// Notes that the process is in a sandbox with these filters.
pub fn set_filters(filters: Option<Arc<Filters>>) {
    CONTEXT.with_borrow_mut(|context| context.filters = filters);
}

/// Sets the device that the calling thread works for; `None` for no device.
pub fn set_device(device: Option<Arc<str>>) {
    CONTEXT.with_borrow_mut(|context| context.device = device);
}

/// The device that the calling thread works for.
pub fn device() -> Option<Arc<str>> {
    // A thread that is ending may still log.
    CONTEXT
        .try_with(|context| context.try_borrow().ok()?.device.clone())
        .ok()?
}
