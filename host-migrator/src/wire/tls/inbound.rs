// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decrypts what arrives.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::Error;

use super::buffer::RECORD;
use super::error::explain;
use super::session::{Session, Step};

/// Room for one record, with the greatest overhead that rustls takes.
const LEAST_ROOM: usize = RECORD + 2048 + 5;
/// The most bytes that are received at once.
const MOST_ROOM: usize = 16 * LEAST_ROOM;

/// The receiving direction of a session: records that have arrived, and bytes that were decrypted and not read yet.
pub(in crate::wire) struct Inbound {
    session: Arc<Session>,
    records: Vec<u8>,
    start: usize,
    end: usize,
    plain: Vec<u8>,
    /// How many of the plain bytes were read.
    read: usize,
    /// The peer has said that it sends no more.
    closed: bool,
    failure: Option<Error>,
}

impl Inbound {
    /// `records` have arrived already, and `plain` bytes were decrypted.
    pub(super) fn new(session: Arc<Session>, records: &[u8], plain: Vec<u8>) -> Self {
        Self {
            session,
            start: 0,
            end: records.len(),
            records: records.to_vec(),
            plain,
            read: 0,
            closed: false,
            failure: None,
        }
    }

    /// Decrypts into `bytes` as much as has arrived. Returns how much.
    pub(in crate::wire) fn take(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut count = self.take_plain(bytes);
        while count < bytes.len() && self.open(&mut bytes[count..], &mut count) {}
        match &self.failure {
            Some(failure) if count == 0 => Err(explain(failure.clone()).into()),
            _ => Ok(count),
        }
    }

    /// Whether a read would not wait: bytes, an error, or the peer's last word.
    pub(in crate::wire) fn is_ready(&mut self) -> bool {
        while self.read == self.plain.len() && self.open(&mut [], &mut 0) {}
        self.read < self.plain.len() || self.closed || self.failure.is_some()
    }

    /// The peer has said that it sends no more.
    pub(in crate::wire) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Room for what is received next, when `wanted` bytes are to be read.
    pub(in crate::wire) fn room(&mut self, wanted: usize) -> &mut [u8] {
        // What waits is less than a record.
        self.records.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = wanted.clamp(LEAST_ROOM, MOST_ROOM);
        if self.records.len() < room {
            self.records.resize(room, 0);
        }
        &mut self.records[self.end..]
    }

    /// The next `count` bytes of the room have arrived.
    pub(in crate::wire) fn arrived(&mut self, count: usize) {
        self.end += count;
    }

    fn take_plain(&mut self, bytes: &mut [u8]) -> usize {
        let left = &self.plain[self.read..];
        let count = left.len().min(bytes.len());
        bytes[..count].copy_from_slice(&left[..count]);
        self.read += count;
        if self.read == self.plain.len() {
            self.plain.clear();
            self.read = 0;
        }
        count
    }

    /// Decrypts the next record into `bytes`, of which `count` grows by what was written; the rest waits. Returns `false` if
    /// there is no whole record.
    fn open(&mut self, bytes: &mut [u8], count: &mut usize) -> bool {
        if self.start == self.end || self.closed || self.failure.is_some() {
            return false;
        }
        let (plain, mut filled) = (&mut self.plain, 0);
        let mut take = |payload: &[u8]| {
            let now = payload.len().min(bytes.len() - filled);
            bytes[filled..filled + now].copy_from_slice(&payload[..now]);
            filled += now;
            plain.extend_from_slice(&payload[now..]);
        };
        let incoming = &mut self.records[self.start..self.end];
        let (done, step) = self.session.open(incoming, &mut take);
        self.start += done;
        *count += filled;
        match step {
            Ok(Step::Again | Step::Send) => true,
            Ok(Step::Open | Step::Handshaking) => false,
            Ok(Step::Closed) => {
                self.closed = true;
                false
            }
            Err(error) => {
                self.failure = Some(error);
                false
            }
        }
    }
}

impl fmt::Debug for Inbound {
    /// Shows no bytes that were encrypted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
