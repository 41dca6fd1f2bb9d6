// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far a ring has been read, to notice when a driver sets it up anew.

use crate::virtqueue::ring::Ring;

/// Where the device last took chains from a ring.
#[derive(Debug, Default)]
pub struct QueuePosition {
    next: Option<u16>,
    stopped: bool,
}

impl QueuePosition {
    /// Notes the present position as the last one.
    pub fn leave(&mut self, ring: &Ring) {
        self.next = Some(ring.next_chain());
    }

    /// Notes that the front end stops the ring.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Notes where the ring is now. Returns whether a driver has set it up anew since [`QueuePosition::leave`]: the
    /// ring's position has changed, or it starts from 0 after a stop.
    pub fn notice_new_ring(&mut self, ring: &Ring) -> bool {
        let next = ring.next_chain();
        let stopped = std::mem::take(&mut self.stopped);
        let left = self.next.replace(next);
        left.is_some_and(|left| left != next) || stopped && next == 0
    }
}
