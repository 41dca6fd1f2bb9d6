// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of a virtio-mmio device, as a driver uses them.

use reference_vmm::mmio::MmioDevice;
use spec_testing::virtqueue::Virtqueue;
use virtio_bindings::virtio_mmio as reg;

/// Something with access to a virtio-mmio device.
pub trait Registers {
    fn registers(&self) -> &dyn MmioDevice;

    fn read(&self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.registers().read(u64::from(offset), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u32, value: u32) {
        let data = value.to_le_bytes();
        self.registers().write(u64::from(offset), &data);
    }

    /// The features that the device offers.
    fn offered(&self) -> u64 {
        let half = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(1) << 32 | half(0)
    }

    /// Goes from a reset to FEATURES_OK with these `features`. Panics where Linux would give up.
    fn accept(&self, features: u64) {
        for status in [0, 1, 3] {
            self.write(reg::VIRTIO_MMIO_STATUS, status);
        }
        assert_eq!(self.offered() & features, features, "features not offered");
        for half in [1, 0] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let value = (features >> (32 * half)) as u32;
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.read(reg::VIRTIO_MMIO_STATUS), 11, "features refused");
    }

    /// Goes from FEATURES_OK to DRIVER_OK.
    fn go(&self) {
        self.write(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(
            self.read(reg::VIRTIO_MMIO_STATUS),
            15,
            "the device does not run"
        );
    }

    /// Tells the device where queue number `queue` lies. Returns whether it was ready before.
    fn place_queue(&self, queue: u32, place: &Virtqueue) -> bool {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        let ready = self.read(reg::VIRTIO_MMIO_QUEUE_READY);
        for (offset, value) in [
            (reg::VIRTIO_MMIO_QUEUE_NUM, u64::from(place.size)),
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, place.descriptors),
            (reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, place.descriptors >> 32),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, place.available),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, place.available >> 32),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, place.used),
            (reg::VIRTIO_MMIO_QUEUE_USED_HIGH, place.used >> 32),
            (reg::VIRTIO_MMIO_QUEUE_READY, 1),
        ] {
            self.write(offset, value as u32);
        }
        ready != 0
    }

    /// Notifies the device of new buffers on `queue`.
    fn notify(&self, queue: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
}
