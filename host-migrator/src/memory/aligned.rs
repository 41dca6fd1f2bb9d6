// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes that begin at a multiple of the page size, as direct I/O needs them.

use std::ops::{Deref, DerefMut};

use spec::PAGE_SIZE;

const ALIGNMENT: usize = PAGE_SIZE as usize;

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
        let bytes = vec![0; length + ALIGNMENT];
        let address = bytes.as_ptr().addr();
        Self {
            from: address.next_multiple_of(ALIGNMENT) - address,
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
