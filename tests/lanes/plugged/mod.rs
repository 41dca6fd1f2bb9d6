// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The plugged-in lane: VMMs that were not written here run `vhost-device-balloon`, and their Linux guests drive it
//! with the stock virtio_balloon driver.
//!
//! | module | what it is |
//! |---|---|
//! | [`claims`] | what holds under every VMM with the guest's driver: the tests |
//! | [`agent`] | what holds besides with the guest's agent |
//! | [`uml`], [`qemu`] | the VMMs, and what holds under one of them only |
//! | [`vsock`] | the same QEMU, whose guest's agent comes by vsock |
//! | [`guest`] | a guest with a shell on its console |
//! | [`device`] | the daemon under test |
//! | [`initramfs`] | what the guests boot from |

mod agent;
mod claims;
mod device;
mod guest;
mod initramfs;
mod qemu;
mod uml;
mod vsock;

use crate::lab::PATIENCE;

use device::Device;
use guest::Guest;

/// A VMM that takes vhost-user devices.
trait Vmm {
    /// Begins to boot a guest of [`MEMORY`] whose balloon is `device`. The kernel gets `arguments` besides its own.
    fn start(&self, device: &Device, arguments: &str) -> Guest;

    /// What the guest's agent is told: its port, which the VMM connects to the device, and what else it needs there.
    fn agent_port(&self) -> &'static str;

    /// Starts a device that knows the guest's agent by that port.
    fn device(&self) -> Device {
        Device::start(&[])
    }

    /// What the guest calls its disk, which is [`Device::disk`].
    fn disk(&self) -> &'static str;

    /// Whether the VMM stops the rings when the guest's driver is removed.
    fn tells_of_removal(&self) -> bool {
        true
    }

    /// Boots a guest up to its shell. Its balloon driver is not loaded.
    fn boot(&self, device: &Device, arguments: &str) -> Guest {
        let mut guest = self.start(device, arguments);
        guest.wait_for_boot();
        guest
    }

    /// Boots a guest and waits until its balloon driver runs.
    fn run(&self, device: &mut Device, arguments: &str) -> Guest {
        let mut guest = self.boot(device, arguments);
        guest.load_driver();
        device.wait_for_driver();
        guest
    }
}

const MIB: u64 = 1 << 20;
/// Guest memory.
const MEMORY: u64 = 512 * MIB;

/// Waits until `condition` gives something, for as long as nothing takes that works.
fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    spec_testing::within(PATIENCE, what, condition)
}
