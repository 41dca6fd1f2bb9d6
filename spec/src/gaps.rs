// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest notices of its host: the gaps between the beats of its vCPUs, and how long a read of its memory takes.

use crate::histogram::Histogram;

/// Microseconds between two beats of a vCPU that misses nothing, and about as many between two reads that it times.
pub const BEAT_MICROS: u64 = 1000;

/// Gaps in microseconds. A vCPU of the bare guest beats as soon as a millisecond has passed since its last beat. A longer gap is time that
/// the guest did not get, or spent waiting for the host. A bin is a sixteenth of a power of two wide.
pub type Gaps = Histogram<10, 4>;

/// Nanoseconds that a vCPU waits for a word of a random page in use. A bin is an eighth of a power of two wide.
pub type ReadTimes = Histogram<4, 3>;
