// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state that all vCPUs share: interrupt controllers, timer and clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::clock::Reading;
use super::exact::Exact;
use super::{StateError, refused};

/// The interrupt controllers, in the order in which they are saved.
const IRQCHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// What KVM keeps for a machine as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlatformState {
    irqchips: [Exact<kvm_irqchip>; IRQCHIPS.len()],
    pit: Exact<kvm_pit_state2>,
    /// The paravirtual clock.
    pub clock: Reading,
}

impl PlatformState {
    /// Reads the state from KVM. The vCPUs must be paused.
    ///
    /// # Errors
    /// [`StateError::Kvm`].
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let mut irqchips = IRQCHIPS.map(|chip_id| {
            Exact(kvm_irqchip {
                chip_id,
                ..Default::default()
            })
        });
        for chip in &mut irqchips {
            vm.get_irqchip(&mut chip.0)
                .map_err(refused("interrupt controllers"))?;
        }
        Ok(Self {
            irqchips,
            pit: Exact(vm.get_pit2().map_err(refused("timer"))?),
            clock: Reading::of_clock(vm).map_err(refused("clock"))?,
        })
    }

    /// Gives the state to KVM.
    ///
    /// # Errors
    /// [`StateError::Kvm`] if KVM refuses something.
    pub fn load(&self, vm: &VmFd) -> Result<(), StateError> {
        for (chip, expected) in self.irqchips.iter().zip(IRQCHIPS) {
            let mut chip = chip.0;
            chip.chip_id = expected;
            vm.set_irqchip(&chip)
                .map_err(refused("interrupt controllers"))?;
        }
        vm.set_pit2(&self.pit.0).map_err(refused("timer"))?;
        self.clock.set_clock(vm).map_err(refused("clock"))
    }
}
