// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtual machine with guest memory and a balloon.

use std::path::Path;
use std::sync::Arc;

use host_migrator::{GuestRam, RamRegion};
use kvm_ioctls::VmFd;
use reference_vmm::mmio::MmioSlot;
use reference_vmm::virtio::{VhostUserBalloon, VirtioError};

use crate::daemon::Daemon;
use crate::driver::Driver;
pub use crate::shared::{MIB, eventually, machine};

/// Two regions with a hole between them.
const REGIONS: [(u64, u64); 2] = [(0, 16 * MIB), (32 * MIB, 16 * MIB)];
/// In the hole, at an address that real mode can reach. The interrupt is also an input of the old interrupt controller.
pub const SLOT: MmioSlot = MmioSlot {
    gpa: 0xd0000,
    gsi: 5,
};

pub fn guest_ram() -> Arc<GuestRam> {
    let regions = REGIONS.map(|(gpa, len)| RamRegion::new(gpa, len).unwrap());
    Arc::new(GuestRam::map(regions.into()).unwrap())
}

/// A machine, its memory, and a balloon whose back end is a process of its own.
pub struct Subject {
    pub device: Arc<VhostUserBalloon>,
    pub daemon: Daemon,
    pub ram: Arc<GuestRam>,
    pub vm: VmFd,
}

impl Subject {
    /// A balloon for a guest in `ram`; `None` without KVM.
    pub fn new(ram: &Arc<GuestRam>) -> Option<Self> {
        let vm = machine()?;
        let daemon = Daemon::start();
        let device = connect(&daemon.socket(), ram, &vm).unwrap();
        Some(Self {
            device,
            daemon,
            ram: Arc::clone(ram),
            vm,
        })
    }

    /// A driver that has not used the device yet.
    pub fn driver(&self) -> Driver {
        Driver::new(&self.device, &self.ram)
    }

    /// A driver that has set up the device.
    pub fn running_driver(&self) -> Driver {
        let mut driver = self.driver();
        driver.bring_up();
        driver
    }
}

pub fn connect(
    socket: &Path,
    ram: &Arc<GuestRam>,
    vm: &VmFd,
) -> Result<Arc<VhostUserBalloon>, VirtioError> {
    VhostUserBalloon::connect(socket, ram, vm, SLOT)
}
