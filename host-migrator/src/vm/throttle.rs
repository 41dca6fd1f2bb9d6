// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that is slowed down, so that it writes less than the link sends.

use std::num::NonZeroU64;

use super::error::MachineError;

/// Takes time away from the guest's vCPUs.
pub trait Throttle: Send {
    /// Lets each vCPU run for all but `percent` of its time from now on: 0 is full speed, 99 the most. All vCPUs get the same
    /// share. It returns at once, also while the machine is stopped, and does not hold up a stop of the machine.
    ///
    /// Whenever a migration ends, in whatever way, it sets 0.
    ///
    /// # Errors
    /// [`MachineError`] if the guest cannot be throttled. The migration then goes on without.
    fn set(&mut self, percent: u8) -> Result<(), MachineError>;

    /// Lets each vCPU make at most so much memory dirty from now on, until [`Throttle::set`] is called with 0. A vCPU that dirties less
    /// loses no time.
    ///
    /// # Errors
    /// [`MachineError`] if that is not known of single vCPUs. So it is by default. The migration then goes on without.
    fn limit_dirtying(&mut self, bytes_a_second: NonZeroU64) -> Result<(), MachineError> {
        let _ = bytes_a_second;
        Err(MachineError {
            action: "limit how much each vCPU dirties",
            reason: "this machine does not know how much each vCPU has dirtied".into(),
        })
    }
}
