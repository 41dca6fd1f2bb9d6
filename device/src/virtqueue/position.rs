// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far a ring has been read. A driver that sets its ring up anew begins elsewhere.

use crate::virtqueue::ring::Ring;

/// Where a ring was left when chains were last taken from it.
#[derive(Debug, Default)]
pub struct QueuePosition {
    next: Option<u16>,
    stopped: bool,
}

impl QueuePosition {
    /// The ring is left as it is now.
    pub fn leave(&mut self, ring: &Ring) {
        self.next = Some(ring.next_chain());
    }

    /// The front end stops the ring.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Notes where the ring is now. Returns whether a driver has set it up anew since it was left: it does not go on
    /// where it was, or starts from the beginning after a stop.
    pub fn notice_new_ring(&mut self, ring: &Ring) -> bool {
        let next = ring.next_chain();
        let stopped = std::mem::take(&mut self.stopped);
        let left = self.next.replace(next);
        left.is_some_and(|left| left != next) || stopped && next == 0
    }
}
