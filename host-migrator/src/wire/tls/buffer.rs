// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes that wait to be sent. Its memory is used again, so that no byte is cleared before it is overwritten.

/// The most plain bytes of a record.
pub(super) const RECORD: usize = 16 << 10;
/// What a record adds to its plain bytes in TLS 1.3: a header of 5 bytes, a content type and a tag of 16.
pub(super) const RECORD_OVERHEAD: usize = 22;

/// A queue of bytes.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// The bytes that wait.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes wait no more.
    pub(super) fn sent(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// All bytes wait no more.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Room for `count` more bytes. [`Buffer::filled`] says how many of them were written.
    pub(super) fn room(&mut self, count: usize) -> &mut [u8] {
        if self.bytes.len() < self.end + count {
            self.bytes.resize(self.end + count, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes were written to the room.
    pub(super) fn filled(&mut self, count: usize) {
        self.end += count;
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.filled(bytes.len());
    }
}
