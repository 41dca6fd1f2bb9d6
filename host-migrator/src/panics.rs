// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The messages of caught panics, and steps that must not stop each other.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The message of a panic that was caught.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}

/// Does one step at the end of a migration. A failure or panic does not stop the next step. Returns the error.
pub(crate) fn attempt<E: Display>(
    step: &'static str,
    action: impl FnOnce() -> Result<(), E>,
) -> Option<String> {
    let why = match catch_unwind(AssertUnwindSafe(action)) {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => text_of(&*panic),
    };
    log::error!("after the migration: cannot {step}: {why}");
    Some(why)
}
