// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asks the kernel for huge pages.
#![allow(unsafe_code)]

use rustix::mm::{Advice, madvise};
use spec::PAGE_SIZE;

/// Asks for huge pages in the pages that lie wholly in `words`. The kernel may have none; then nothing changes.
pub(super) fn ask_for_huge_pages<T>(words: &[T]) {
    let bytes = words.as_ptr_range();
    let (start, end) = (bytes.start.addr(), bytes.end.addr());
    let start_of_pages = start.next_multiple_of(PAGE_SIZE as usize);
    let length = end.saturating_sub(start_of_pages) & !(PAGE_SIZE as usize - 1);
    if length == 0 {
        return;
    }
    let first = bytes
        .start
        .cast_mut()
        .wrapping_byte_add(start_of_pages - start);
    // SAFETY: the range is inside `words`, which is borrowed. This advice changes no content and takes no page away.
    let asked = unsafe { madvise(first.cast(), length, Advice::LinuxHugepage) };
    if let Err(error) = asked {
        log::debug!("the kernel gives no huge pages: {error}");
    }
}
