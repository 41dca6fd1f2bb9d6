// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that is slowed down, so that it writes less than the link sends.

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
}
