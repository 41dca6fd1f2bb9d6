// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The plugged-in lane: VMMs that were not written here run `vhost-device-balloon`, and their Linux guests drive it
//! with the stock virtio_balloon driver.
//!
//! | module | what it is |
//! |---|---|
//! | [`claims`] | claims about every VMM and the guest's driver |
//! | [`agent`] | claims about the guest's agent |
//! | [`uml`], [`qemu`] | the VMMs, and claims about one of them |
//! | [`vsock`] | QEMU with a vsock for the guest's agent |
//! | [`guest`] | a guest with a shell on its console |
//! | [`device`] | the daemon under test |
//! | [`initramfs`] | the guests' initial ramdisk |

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
    /// Starts booting a guest of [`MEMORY`] with the balloon `device`. The kernel gets additional `arguments`.
    fn start(&self, device: &Device, arguments: &str) -> Guest;

    /// The agent's port in the guest, which the VMM connects to the device, and further flags of the agent.
    fn agent_port(&self) -> &'static str;

    /// Starts a device for an agent at that port.
    fn device(&self) -> Device {
        Device::start(&[])
    }

    /// The guest's name of its disk [`Device::disk`].
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

/// Waits until `condition` returns a value. Only a hang exceeds the time limit.
fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    spec_testing::within(PATIENCE, what, condition)
}
