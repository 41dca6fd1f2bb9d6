// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Encrypts what is to be sent.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::buffer::{Buffer, RECORD};
use super::error::explain;
use super::session::Session;

/// The most records that are sent with one system call.
const MOST_RECORDS: usize = 16;

/// The sending direction of a session, and the records that wait to be sent.
pub(in crate::wire) struct Outbound {
    session: Arc<Session>,
    records: Buffer,
    /// Small parts, until they fill a record.
    small: Vec<u8>,
    /// A record was sent in part, or was made and is not sent any more. The peer can decrypt nothing after it.
    broken: bool,
    closed: bool,
}

impl Outbound {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            records: Buffer::default(),
            small: Vec::new(),
            broken: false,
            closed: false,
        }
    }

    /// Records that wait to be sent.
    pub(in crate::wire) fn waiting(&self) -> &[u8] {
        self.records.waiting()
    }

    /// The kernel has taken the first `count` bytes of what waits.
    pub(in crate::wire) fn sent(&mut self, count: usize) {
        self.records.sent(count);
    }

    /// What waits must never be sent: a hand-over that waits here is not the destination's. If anything does, nothing more can be
    /// sent.
    pub(in crate::wire) fn give_up(&mut self) {
        self.broken |= !self.records.waiting().is_empty();
        self.records.clear();
    }

    /// Encrypts the first bytes of `parts`, as many as are sent at once. Returns how many bytes wait that belong to earlier
    /// messages, such as new keys; the others carry `parts`.
    pub(in crate::wire) fn seal(&mut self, parts: &mut Parts<'_>) -> io::Result<usize> {
        if self.broken || self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut own = 0;
        for _ in 0..MOST_RECORDS {
            let sealed = match parts.piece(RECORD) {
                Some(piece) => self.session.seal(piece, &mut self.records),
                None => {
                    parts.fill(&mut self.small, RECORD);
                    if self.small.is_empty() {
                        break;
                    }
                    let sealed = self.session.seal(&self.small, &mut self.records);
                    self.small.clear();
                    sealed
                }
            };
            own += sealed.map_err(explain)?;
        }
        Ok(self.records.waiting().len().saturating_sub(own))
    }

    /// Says that no more is sent. Returns `false` if that cannot be said any more.
    pub(in crate::wire) fn close(&mut self) -> bool {
        if self.broken || std::mem::replace(&mut self.closed, true) {
            return false;
        }
        self.session.close(&mut self.records);
        true
    }
}

impl fmt::Debug for Outbound {
    /// Shows no bytes that are being encrypted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("broken", &self.broken)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// What is left of a message's parts.
pub(in crate::wire) struct Parts<'a> {
    parts: &'a [IoSlice<'a>],
    /// Bytes of the first part that are done.
    done: usize,
}

impl<'a> Parts<'a> {
    pub(in crate::wire) fn new(parts: &'a [IoSlice<'a>]) -> Self {
        let mut parts = Self { parts, done: 0 };
        parts.advance(0);
        parts
    }

    /// Whether nothing is left.
    pub(in crate::wire) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes `length` bytes, if they lie in one piece.
    fn piece(&mut self, length: usize) -> Option<&'a [u8]> {
        let piece = self.parts.first()?.get(self.done..self.done + length)?;
        self.advance(length);
        Some(piece)
    }

    /// Takes bytes until `buffer` holds `length` of them, or nothing is left.
    fn fill(&mut self, buffer: &mut Vec<u8>, length: usize) {
        while buffer.len() < length
            && let Some(first) = self.parts.first()
        {
            let left = &first[self.done..];
            let count = left.len().min(length - buffer.len());
            buffer.extend_from_slice(&left[..count]);
            self.advance(count);
        }
    }

    fn advance(&mut self, count: usize) {
        self.done += count;
        while let [first, rest @ ..] = self.parts
            && self.done == first.len()
        {
            (self.parts, self.done) = (rest, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_the_parts_is_taken_once_and_in_order() {
        let bytes: Vec<u8> = (0..100).collect();
        let cuts = [0, 3, 3, 50, 60, 100];
        let slices: Vec<_> = cuts
            .windows(2)
            .map(|cut| IoSlice::new(&bytes[cut[0]..cut[1]]))
            .collect();
        let mut parts = Parts::new(&slices);
        let (mut taken, mut pieces) = (Vec::new(), 0);
        while !parts.is_empty() {
            if let Some(piece) = parts.piece(10) {
                pieces += 1;
                taken.extend_from_slice(piece);
            } else {
                let mut buffer = Vec::new();
                parts.fill(&mut buffer, 10);
                assert!(!buffer.is_empty() && buffer.len() <= 10);
                taken.extend(buffer);
            }
        }
        assert_eq!(taken, bytes);
        // Where the parts are long enough, nothing is copied.
        assert_eq!(pieces, 9);
    }
}
