// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The 64-bit words of which maps of guest memory are made.

use spec::sync::AtomicU64;

/// `count` words of zero. The kernel allocates memory for them when they are first written.
#[cfg(not(loom))]
pub(crate) fn zeros(count: u64) -> Box<[AtomicU64]> {
    bytemuck::zeroed_slice_box(count as usize)
}

/// loom's atomics cannot be made from zeroed bytes.
#[cfg(loom)]
pub(crate) fn zeros(count: u64) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}
