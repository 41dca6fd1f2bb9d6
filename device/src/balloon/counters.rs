// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counters of what the balloon has done. Each queue counts its own part.

use std::iter::Sum;

/// Counters that only increase, even across resets and front ends. Pages have 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages that the guest put into the balloon.
    pub inflated_pages: u64,
    /// Pages that the guest took out of the balloon.
    pub deflated_pages: u64,
    /// Pages that the guest put in when they were in already, or took out when they were not in.
    pub repeated_pages: u64,
    /// Pages that the guest reported as free.
    pub reported_pages: u64,
    /// Pages reported by a guest that relies on their content, its page poison.
    pub poisoned_pages: u64,
    /// Bytes of guest memory that were given back to the host.
    pub discarded_bytes: u64,
    /// System calls that gave memory back.
    pub discards: u64,
    /// System calls to give memory back that failed.
    pub failed_discards: u64,
    /// Pages or ranges outside guest memory.
    pub out_of_range: u64,
    /// Invalid buffers: on the wrong side of the queue, of odd length, too long, unreadable, or in a chain or ring without
    /// an end.
    pub bad_buffers: u64,
    /// Statistics that the guest sent.
    pub statistics: u64,
}

impl Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            inflated_pages: sum.inflated_pages + part.inflated_pages,
            deflated_pages: sum.deflated_pages + part.deflated_pages,
            repeated_pages: sum.repeated_pages + part.repeated_pages,
            reported_pages: sum.reported_pages + part.reported_pages,
            poisoned_pages: sum.poisoned_pages + part.poisoned_pages,
            discarded_bytes: sum.discarded_bytes + part.discarded_bytes,
            discards: sum.discards + part.discards,
            failed_discards: sum.failed_discards + part.failed_discards,
            out_of_range: sum.out_of_range + part.out_of_range,
            bad_buffers: sum.bad_buffers + part.bad_buffers,
            statistics: sum.statistics + part.statistics,
        })
    }
}
