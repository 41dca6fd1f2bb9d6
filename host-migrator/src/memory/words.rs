// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The 64-bit words of which maps of guest memory are made.

use spec::sync::AtomicU64;

#[cfg(not(loom))]
use super::huge_pages::ask_for_huge_pages;

/// A map with more words gets huge pages: one bit a page for 64 GiB. A walk that touches few words of a large map pays mostly
/// for misses of the TLB.
#[cfg(not(loom))]
const MOST_ON_SMALL_PAGES: u64 = 1 << 18;

/// `count` words of zero. The kernel allocates memory for them when they are first written.
#[cfg(not(loom))]
pub(crate) fn zeros(count: u64) -> Box<[AtomicU64]> {
    let words = bytemuck::zeroed_slice_box(count as usize);
    if count > MOST_ON_SMALL_PAGES {
        ask_for_huge_pages(&words);
    }
    words
}

/// loom's atomics cannot be made from zeroed bytes.
#[cfg(loom)]
pub(crate) fn zeros(count: u64) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}
