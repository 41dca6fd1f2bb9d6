// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as KVM's memory slots, and the ioctls of their dirty logs that `kvm-ioctls` lacks.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;

use host_migrator::GuestRam;
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log,
    kvm_dirty_log, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::ioctl::ioctl_with_ref;

use self::number::{KVM_CLEAR_DIRTY_LOG, KVM_GET_DIRTY_LOG};

/// Request numbers, from `linux/kvm.h`.
mod number {
    use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_dirty_log};
    use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

    ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
}

/// The most pages of a slot: 4 TiB. KVM takes fewer than 2^31 pages.
const MOST_PAGES: u64 = 1 << 30;

/// The memory slots of a virtual machine: one for each region of its memory, or several if the region is too large for
/// one. Dropping this removes the memory from the machine.
#[derive(Debug)]
pub struct MemorySlots {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    pages: Vec<PageRange>,
}

impl MemorySlots {
    /// Gives `ram` to `vm`. Its dirty logs are cleared by a call of their own (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) and not
    /// when they are read.
    ///
    /// # Errors
    /// The kernel's. A kernel before Linux 5.0 does not have the capability.
    pub fn register(vm: Arc<VmFd>, ram: Arc<GuestRam>) -> io::Result<Self> {
        // INITIALLY_SET needs Linux 5.7; without it the kernel protects all pages when logging starts.
        let known = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
        let wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
        let mut manual_protect = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            ..Default::default()
        };
        manual_protect.args[0] = u64::from(wanted) & u64::try_from(known).unwrap_or(0);
        vm.enable_cap(&manual_protect).map_err(io::Error::from)?;
        Self::for_rings(vm, ram)
    }

    /// Gives `ram` to `vm`, whose dirty logs are rings: KVM protects all pages when logging starts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn for_rings(vm: Arc<VmFd>, ram: Arc<GuestRam>) -> io::Result<Self> {
        let pages = slots_of(&ram);
        let slots = Self { vm, ram, pages };
        slots.set_logging(false)?;
        Ok(slots)
    }

    /// Gives the virtual machine `ram` instead, which has the same regions. No vCPU may run.
    ///
    /// # Errors
    /// The kernel's. The virtual machine then has no memory, or only a part.
    pub fn replace(&mut self, ram: Arc<GuestRam>) -> io::Result<()> {
        self.delete();
        self.ram = ram;
        self.pages = slots_of(&self.ram);
        self.set_logging(false)
    }

    fn delete(&self) {
        for (slot, pages) in (0..).zip(self.pages()) {
            if let Err(error) = self.set_region(slot, *pages, 0, 0) {
                log::error!("memory slot {slot} cannot be deleted: {error}");
            }
        }
    }

    /// The pages of each slot, by slot number.
    pub fn pages(&self) -> &[PageRange] {
        &self.pages
    }

    /// Switches the dirty log of every slot on or off.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_logging(&self, on: bool) -> io::Result<()> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        (0..)
            .zip(self.pages())
            .try_for_each(|(slot, pages)| self.set_region(slot, *pages, pages.bytes(), flags))
    }

    /// Reads the dirty log of `slot` into `bitmap` (bit 0 is the slot's first page) without clearing it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for an unknown slot or a bitmap of fewer bits than pages, or the kernel's.
    pub fn dirty_log(&self, slot: u32, bitmap: &mut [u64]) -> io::Result<()> {
        if (bitmap.len() as u64) < self.slot(slot)?.count().div_ceil(64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut log = kvm_dirty_log {
            slot,
            ..Default::default()
        };
        log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
        // SAFETY: the kernel writes one bit for each page of the slot, rounded up to words, and `bitmap` has that many.
        let result = unsafe { ioctl_with_ref(&*self.vm, KVM_GET_DIRTY_LOG(), &log) };
        done(result)
    }

    /// Clears those bits of the slot's dirty log that are set in `bitmap`, whose bit 0 is page `first` of the
    /// slot, and protects their pages: the next write to one sets its bit again.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for an unknown slot, pages past its end, or a `first` that is not a multiple of 64;
    /// or the kernel's.
    pub fn clear_dirty_log(&self, slot: u32, first: u64, bitmap: &[u64]) -> io::Result<()> {
        let pages = self.slot(slot)?.count();
        let bits = bitmap.len() as u64 * 64;
        let left = pages.saturating_sub(first);
        if !first.is_multiple_of(64) || bits == 0 || bits > left.next_multiple_of(64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // KVM requires a multiple of 64, except at the slot's end.
        let count = bits.min(left);
        let mut clear = kvm_clear_dirty_log {
            slot,
            // A slot has at most [`MOST_PAGES`].
            num_pages: u32::try_from(count).map_err(io::Error::other)?,
            first_page: first,
            ..Default::default()
        };
        // The kernel only reads it.
        clear.__bindgen_anon_1.dirty_bitmap = bitmap.as_ptr().cast_mut().cast();
        // SAFETY: the kernel reads `num_pages` bits, rounded up to words, and `bitmap` has that many.
        let result = unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &clear) };
        done(result)
    }

    fn slot(&self, slot: u32) -> io::Result<PageRange> {
        let pages = self.pages().get(slot as usize);
        pages
            .copied()
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Sets up a slot, or deletes it if `bytes` is 0.
    fn set_region(&self, slot: u32, pages: PageRange, bytes: u64, flags: u32) -> io::Result<()> {
        let gpa = pages.first() * PAGE_SIZE;
        let memory = self.ram.memory();
        let host = memory.get_host_address(GuestAddress(gpa));
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: host.map_err(io::Error::other)? as u64,
        };
        // SAFETY: the region is mapped as long as `self.ram` lives, and the slots are deleted before it is dropped.
        let result = unsafe { self.vm.set_user_memory_region(region) };
        result.map_err(io::Error::from)
    }
}

impl Drop for MemorySlots {
    fn drop(&mut self) {
        self.delete();
    }
}

/// The pages of each slot that `ram` gets.
pub(crate) fn slots_of(ram: &GuestRam) -> Vec<PageRange> {
    split(ram.regions(), MOST_PAGES)
}

/// Splits `regions` into pieces of at most `most` pages.
fn split(regions: &[PageRange], most: u64) -> Vec<PageRange> {
    let pieces = regions.iter().flat_map(|region| {
        let firsts = (region.first()..region.end()).step_by(most as usize);
        firsts.filter_map(|first| PageRange::new(first, most.min(region.end() - first)))
    });
    pieces.collect()
}

fn done(result: std::os::raw::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_is_too_large_for_a_slot_has_several() {
        let pages = |first, count| PageRange::new(first, count).unwrap();
        let regions = [pages(0, 10), pages(16, 3), pages(32, 8)];
        let slots = [
            pages(0, 4),
            pages(4, 4),
            pages(8, 2),
            pages(16, 3),
            pages(32, 4),
            pages(36, 4),
        ];
        assert_eq!(split(&regions, 4), slots);
        assert_eq!(split(&regions, MOST_PAGES), regions);
        let large = [pages(1 << 20, 5 * MOST_PAGES + 1)];
        assert!(
            split(&large, MOST_PAGES)
                .iter()
                .all(|slot| slot.count() < 1 << 31)
        );
    }
}
