// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The atomics of shared bitmaps: the processor's, or loom's where a test tries every interleaving
//! (`tests/run loom`).

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering};
