// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a panic said.

use std::any::Any;

/// The message of a panic that was caught.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}
