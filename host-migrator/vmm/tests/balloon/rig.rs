// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtual machine with guest memory and a balloon.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_migrator::{GuestRam, RamRegion};
use kvm_ioctls::{Kvm, VmFd};
use reference_vmm::mmio::MmioSlot;
use reference_vmm::virtio::{VhostUserBalloon, VirtioError};

use crate::daemon::Daemon;
use crate::driver::Driver;

/// The end of every wait in these tests. Reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const MIB: u64 = 1 << 20;
/// Two regions with a hole between them.
const REGIONS: [(u64, u64); 2] = [(0, 16 * MIB), (32 * MIB, 16 * MIB)];
/// In the hole that real mode can reach, and an input of the old interrupt controller too.
pub const SLOT: MmioSlot = MmioSlot {
    gpa: 0xd0000,
    gsi: 5,
};

/// Tries until `attempt` gives something.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn guest_ram() -> Arc<GuestRam> {
    let region = |(gpa, len): (u64, u64)| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = std::fs::File::from(rustix::fs::memfd_create("ram", flags).unwrap());
        file.set_len(len).unwrap();
        RamRegion {
            gpa,
            len,
            file,
            offset: 0,
        }
    };
    Arc::new(GuestRam::map(REGIONS.map(region).into()).unwrap())
}

/// A virtual machine with interrupt controllers; `None`, with a word about it, where there is no KVM.
pub fn machine() -> Option<VmFd> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be used: {error}");
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    Some(vm)
}

/// A machine, its memory, and a balloon whose back end has a process of its own.
pub struct Subject {
    pub device: Arc<VhostUserBalloon>,
    pub daemon: Daemon,
    pub ram: Arc<GuestRam>,
    pub vm: VmFd,
}

impl Subject {
    /// A balloon for a guest in `ram`; `None` where there is no KVM.
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

    /// A driver that has not touched the device yet.
    pub fn driver(&self) -> Driver {
        Driver::new(&self.device, &self.ram)
    }

    /// A driver that has brought the device up.
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
