// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that the guest and the device both read and write.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

/// Memory shared with a device, with its addresses for the guest and for the device.
///
/// Every access is atomic, because the device accesses it at the same time.
#[derive(Debug)]
pub struct DmaRegion {
    base: NonNull<u8>,
    address: u64,
    bytes: usize,
}

// SAFETY: only this value (and the device) uses the region, on any processor.
unsafe impl Send for DmaRegion {}

impl DmaRegion {
    /// `bytes` of memory at `base` for the guest and at `address` for the device.
    ///
    /// # Safety
    /// The memory is mapped for reading and writing, and only this value and the device use it for as long as either may
    /// access it. `base` and `address` are multiples of 16.
    pub const unsafe fn new(base: NonNull<u8>, address: u64, bytes: usize) -> Self {
        Self {
            base,
            address,
            bytes,
        }
    }

    /// Its address for the device.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Splits off the first `bytes`, rounded up to a multiple of 16; `None` if the region is shorter.
    pub fn split(self, bytes: usize) -> Option<(Self, Self)> {
        let bytes = bytes.checked_next_multiple_of(16)?;
        let rest = self.bytes.checked_sub(bytes)?;
        // SAFETY: `bytes` is at most the region's length, so this stays inside it or at its end.
        let middle = unsafe { self.base.add(bytes) };
        let front = Self { bytes, ..self };
        let back = Self {
            base: middle,
            address: front.address + bytes as u64,
            bytes: rest,
        };
        Some((front, back))
    }

    /// The 16-bit field at `offset`. Panics if it is unaligned or outside.
    pub(crate) fn u16_at(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `field` checked bounds and alignment; all access to the region is atomic.
        unsafe { AtomicU16::from_ptr(self.field(offset)) }
    }

    /// The 32-bit field at `offset`. Panics if it is unaligned or outside.
    pub(crate) fn u32_at(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u16_at`.
        unsafe { AtomicU32::from_ptr(self.field(offset)) }
    }

    /// The 64-bit field at `offset`. Panics if it is unaligned or outside.
    pub(crate) fn u64_at(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u16_at`.
        unsafe { AtomicU64::from_ptr(self.field(offset)) }
    }

    fn field<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(offset.is_multiple_of(size) && offset + size <= self.bytes);
        // SAFETY: inside the region, by the assertion.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }
}
