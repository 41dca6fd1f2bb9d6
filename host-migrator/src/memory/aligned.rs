// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes that begin at a multiple of the page size, as direct I/O needs them.

use std::ops::{Deref, DerefMut};

use spec::PAGE_SIZE;

use super::huge_pages::ask_for_huge_pages;

const ALIGNMENT: usize = PAGE_SIZE as usize;
/// So many bytes ask for huge pages: the disk then gets one address for all of them, and not one for each page.
const LARGE: usize = 1 << 20;
const HUGE: usize = 2 << 20;

/// Bytes in memory that begin at a multiple of [`PAGE_SIZE`].
#[derive(Debug)]
pub(crate) struct AlignedBytes {
    /// Never grows, so that it stays where it is.
    bytes: Vec<u8>,
    from: usize,
    length: usize,
}

impl AlignedBytes {
    /// `length` bytes, all zero.
    pub(crate) fn zeroed(length: usize) -> Self {
        let is_large = length >= LARGE;
        // What lies before and behind is never touched, and takes no memory.
        let (alignment, room) = match is_large {
            true => (HUGE, length.next_multiple_of(HUGE) + HUGE),
            false => (ALIGNMENT, length + ALIGNMENT),
        };
        let bytes = vec![0; room];
        if is_large {
            ask_for_huge_pages(&bytes);
        }
        let address = bytes.as_ptr().addr();
        Self {
            from: address.next_multiple_of(alignment) - address,
            bytes,
            length,
        }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..][..self.length]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_length_begin_at_a_page_and_stay_there() {
        let all: Vec<_> = [0, 1, 5000, 1 << 20].map(AlignedBytes::zeroed).into();
        for (bytes, length) in all.iter().zip([0, 1, 5000, 1 << 20]) {
            assert_eq!(bytes.as_ptr().addr() % ALIGNMENT, 0);
            assert_eq!(bytes.len(), length);
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }
}
