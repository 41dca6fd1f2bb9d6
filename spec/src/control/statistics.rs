// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory statistics: tags and values as the guest sent them.

use super::frame::{Body, ControlError, MAX_PAYLOAD};
use crate::wire;

const AGE_BYTES: usize = 8;
const ENTRY_BYTES: usize = 10;

/// The most tags that a reply has room for. Linux defines 16.
pub const MAX_STATISTICS: usize = (MAX_PAYLOAD - AGE_BYTES) / ENTRY_BYTES;

/// Values by tag, and their age. Unknown tags are kept as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    age_ms: u64,
    count: usize,
    values: [(u16, u64); MAX_STATISTICS],
}

impl Statistics {
    /// The first [`MAX_STATISTICS`] of `values`, which the guest sent `age_ms` milliseconds ago.
    pub fn new(age_ms: u64, values: impl IntoIterator<Item = (u16, u64)>) -> Self {
        let mut statistics = Self {
            age_ms,
            count: 0,
            values: [(0, 0); MAX_STATISTICS],
        };
        for (slot, value) in statistics.values.iter_mut().zip(values) {
            *slot = value;
            statistics.count += 1;
        }
        statistics
    }

    /// Milliseconds since the guest sent them.
    pub fn age_ms(&self) -> u64 {
        self.age_ms
    }

    /// The tags with their values, in the order of the guest.
    pub fn values(&self) -> &[(u16, u64)] {
        &self.values[..self.count]
    }

    pub(super) fn write(&self, body: &mut Body<'_>) {
        body.u64(self.age_ms);
        for &(tag, value) in self.values() {
            body.u16(tag);
            body.u64(value);
        }
    }

    /// Reads a payload of any whole number of entries.
    pub(super) fn read(kind: u16, payload: &[u8]) -> Result<Self, ControlError> {
        let length = payload.len();
        let entries = length
            .checked_sub(AGE_BYTES)
            .filter(|bytes| bytes % ENTRY_BYTES == 0)
            .map(|bytes| bytes / ENTRY_BYTES)
            .filter(|&entries| entries <= MAX_STATISTICS)
            .ok_or(ControlError::Length { kind, length })?;
        let entry = |index: usize| {
            let at = AGE_BYTES + index * ENTRY_BYTES;
            (wire::u16_at(payload, at), wire::u64_at(payload, at + 2))
        };
        Ok(Self::new(wire::u64_at(payload, 0), (0..entries).map(entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_tags_than_a_frame_holds_are_cut_off() {
        let many = Statistics::new(5, (0..1000).map(|tag| (tag, u64::from(tag))));
        assert_eq!(many.values().len(), MAX_STATISTICS);
        assert_eq!(many.values().last(), Some(&(23, 23)));
        let mut bytes = [0; MAX_PAYLOAD];
        many.write(&mut Body::new(&mut bytes));
    }
}
