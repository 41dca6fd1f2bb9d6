// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the balloon has done since it was made.

/// Counters that only rise, over resets and front ends. Pages are of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages that the guest put into the balloon.
    pub inflated_pages: u64,
    /// Pages that the guest took out of the balloon.
    pub deflated_pages: u64,
    /// Pages that the guest put in although they were in, or took out although they were not.
    pub repeated_pages: u64,
    /// Pages that the guest reported as free.
    pub reported_pages: u64,
    /// Pages that were reported by a guest that counts on their content, its page poison.
    pub poisoned_pages: u64,
    /// Bytes of guest memory that were given back to the host.
    pub discarded_bytes: u64,
    /// Calls that gave them back.
    pub discards: u64,
    /// Calls that were to give memory back and failed.
    pub failed_discards: u64,
    /// Pages or ranges that do not lie in guest memory.
    pub out_of_range: u64,
    /// Buffers that do not make sense: on the wrong side of the queue, of odd length, too long, unreadable,
    /// or in a chain or ring without an end.
    pub bad_buffers: u64,
    /// Statistics that the guest sent.
    pub statistics: u64,
}
