// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a virtio device for a migration, and the checks of an arriving state.

use host_migrator::GuestRam;
use serde::{Deserialize, Serialize};
use spec::balloon::{CONFIG_SIZE, feature};
use virtio_bindings::virtio_config as status;

use super::device_state::MAX_BYTES;
use super::queue::{QueueError, Ring};
use super::transport::{MAX_QUEUES, Registers};

/// The state of a device with stopped rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// The transport.
    pub registers: Registers,
    /// The configuration space as the guest last saw it.
    pub config: [u8; CONFIG_SIZE],
    /// The next available index of each queue.
    pub bases: [u16; MAX_QUEUES],
    /// The back end's own state, in its own format, if it has one.
    pub back_end: Option<Vec<u8>>,
    /// The back end was lost: `bases` are not valid, and each queue goes on at the used index in guest memory.
    pub back_end_lost: bool,
}

/// This device cannot take the state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// This back end does not take the other's own state, or the state is too large.
    #[error("this back end cannot take the {bytes} bytes of the other back end's own state")]
    BackEnd {
        /// Its size.
        bytes: usize,
    },
    /// The driver uses features that this back end does not offer, or does not use the modern interface.
    #[error("the guest uses the features {wanted:#x}, but this device offers {offered:#x}")]
    Features {
        /// What the driver negotiated.
        wanted: u64,
        /// What the back end offers.
        offered: u64,
    },
    /// A queue that cannot run.
    #[error("queue {index}: {source}")]
    Queue {
        /// Its number.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: QueueError,
    },
    /// A queue that this back end does not have.
    #[error("queue {index} is in use, but this device has {count} queues")]
    QueueCount {
        /// Its number.
        index: usize,
        /// Queues of the back end.
        count: usize,
    },
    /// Status bits that do not exist, or cannot be set together.
    #[error("the device status {0:#x} is impossible")]
    Status(u32),
}

/// What this device has; a state is checked against it.
#[derive(Clone, Copy, Debug)]
pub struct Fit<'a> {
    /// Features that the guest can be offered here.
    pub offered: u64,
    /// Queues of the back end.
    pub queue_count: usize,
    /// Whether the back end takes a state of its own.
    pub device_state: bool,
    /// The guest's memory.
    pub ram: &'a GuestRam,
}

/// A checked state, for the back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The negotiated features, if the driver had negotiated them.
    pub features: Option<u64>,
    /// The rings that run.
    pub rings: Vec<Ring>,
}

impl VirtioState {
    /// Checks every field.
    ///
    /// # Errors
    /// [`StateError`] names the first thing that does not fit.
    pub fn check(&self, fit: &Fit<'_>) -> Result<Checked, StateError> {
        let registers = &self.registers;
        let known = status::VIRTIO_CONFIG_S_ACKNOWLEDGE
            | status::VIRTIO_CONFIG_S_DRIVER
            | status::VIRTIO_CONFIG_S_DRIVER_OK
            | status::VIRTIO_CONFIG_S_FEATURES_OK
            | status::VIRTIO_CONFIG_S_NEEDS_RESET
            | status::VIRTIO_CONFIG_S_FAILED;
        let has = |bit: u32| registers.status & bit != 0;
        let negotiated = has(status::VIRTIO_CONFIG_S_FEATURES_OK);
        let driver_ok = has(status::VIRTIO_CONFIG_S_DRIVER_OK);
        if registers.status & !known != 0 || (driver_ok && !negotiated) {
            return Err(StateError::Status(registers.status));
        }
        let wanted = registers.driver_features;
        let modern = wanted & (1 << feature::VERSION_1) != 0;
        if negotiated && (wanted & !fit.offered != 0 || !modern) {
            return Err(StateError::Features {
                wanted,
                offered: fit.offered,
            });
        }
        if let Some(state) = &self.back_end
            && (!fit.device_state || state.len() > MAX_BYTES)
        {
            return Err(StateError::BackEnd { bytes: state.len() });
        }
        let mut rings = Vec::new();
        for (index, queue) in registers.queues.iter().enumerate() {
            if !queue.ready {
                continue;
            }
            if index >= fit.queue_count {
                return Err(StateError::QueueCount {
                    index,
                    count: fit.queue_count,
                });
            }
            // The queues of a driver that is not up yet are checked later, and those of a device that needs a reset
            // never run.
            if driver_ok && !has(status::VIRTIO_CONFIG_S_NEEDS_RESET) {
                let wrong = |source| StateError::Queue { index, source };
                queue.check(fit.ram).map_err(wrong)?;
                let base = match self.back_end_lost {
                    true => queue.used_index(fit.ram).map_err(wrong)?,
                    false => self.bases[index],
                };
                rings.push(Ring {
                    index,
                    queue: *queue,
                    base,
                });
            }
        }
        let features = negotiated.then_some(wanted);
        Ok(Checked { features, rings })
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::Queue;
    use super::*;
    use host_migrator::RamRegion;

    const OFFERED: u64 = 1 << 32 | 0b1010;

    fn ram() -> GuestRam {
        GuestRam::map(vec![RamRegion::new(0, 0x20000).unwrap()]).unwrap()
    }

    fn running() -> VirtioState {
        let mut registers = Registers {
            status: 15,
            driver_features: OFFERED,
            ..Registers::default()
        };
        registers.queues[2] = Queue {
            size: 128,
            ready: true,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        };
        VirtioState {
            registers,
            config: [0; CONFIG_SIZE],
            bases: [0, 0, 77, 0, 0],
            back_end: Some(vec![1, 2, 3]),
            back_end_lost: false,
        }
    }

    fn check(state: &VirtioState) -> Result<Checked, StateError> {
        let ram = ram();
        state.check(&Fit {
            offered: OFFERED,
            queue_count: 5,
            device_state: true,
            ram: &ram,
        })
    }

    #[test]
    fn a_good_state_yields_the_rings_with_their_bases() {
        let checked = check(&running()).unwrap();
        assert_eq!(checked.features, Some(OFFERED));
        let rings: Vec<_> = checked.rings.iter().map(|r| (r.index, r.base)).collect();
        assert_eq!(rings, [(2, 77)]);
    }

    #[test]
    fn a_driver_that_is_not_up_has_no_rings() {
        let mut state = running();
        state.registers.status = 11;
        state.registers.queues[2].size = 3;
        let checked = check(&state).unwrap();
        assert_eq!(checked.rings, []);
    }

    #[test]
    fn each_field_that_does_not_fit_is_refused_by_name() {
        type Spoil = fn(&mut VirtioState);
        type Expected = fn(&StateError) -> bool;
        let cases: [(Spoil, Expected); 9] = [
            (
                |s| s.registers.status = 0x10 | 15,
                |e| matches!(e, StateError::Status(0x1f)),
            ),
            (
                |s| s.registers.status = 7,
                |e| matches!(e, StateError::Status(7)),
            ),
            (
                |s| s.registers.driver_features |= 1 << 6,
                |e| matches!(e, StateError::Features { .. }),
            ),
            (
                |s| s.registers.driver_features = 0b1010,
                |e| matches!(e, StateError::Features { .. }),
            ),
            (
                |s| s.registers.queues[2].size = 100,
                |e| matches!(e, StateError::Queue { index: 2, .. }),
            ),
            (
                |s| s.registers.queues[2].size = 0,
                |e| matches!(e, StateError::Queue { index: 2, .. }),
            ),
            (
                |s| s.registers.queues[2].descriptors = 0x1fff0,
                |e| matches!(e, StateError::Queue { index: 2, .. }),
            ),
            (
                |s| s.registers.queues[2].used = u64::MAX - 3,
                |e| matches!(e, StateError::Queue { index: 2, .. }),
            ),
            (
                |s| s.back_end = Some(vec![0; MAX_BYTES + 1]),
                |e| matches!(e, StateError::BackEnd { .. }),
            ),
        ];
        for (case, (spoil, expected)) in cases.into_iter().enumerate() {
            let mut state = running();
            spoil(&mut state);
            let error = check(&state).unwrap_err();
            assert!(expected(&error), "case {case}: {error}");
        }
    }

    #[test]
    fn a_back_end_with_fewer_queues_or_without_state_is_named() {
        let ram = ram();
        let mut fit = Fit {
            offered: OFFERED,
            queue_count: 2,
            device_state: true,
            ram: &ram,
        };
        let error = running().check(&fit).unwrap_err();
        assert_eq!(error, StateError::QueueCount { index: 2, count: 2 });
        fit.queue_count = 5;
        fit.device_state = false;
        let error = running().check(&fit).unwrap_err();
        assert_eq!(error, StateError::BackEnd { bytes: 3 });
    }
}
