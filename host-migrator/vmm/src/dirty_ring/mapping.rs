// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vCPU's dirty ring: KVM's calls for it, and its entries in memory that the kernel shares.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_DIRTY_GFN_F_MASK, KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn,
    kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags};
use spec::PAGE_SIZE;
use vmm_sys_util::ioctl::ioctl;

use self::number::KVM_RESET_DIRTY_RINGS;

/// The request number, from `linux/kvm.h`.
mod number {
    use kvm_bindings::KVMIO;
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
}

/// The ring for processors with any memory model (Linux 6.1), from `linux/kvm.h`.
const KVM_CAP_DIRTY_LOG_RING_ACQ_REL: u32 = 223;
/// An entry that KVM has written, and one that was taken.
const DIRTY: u32 = 1;
const TAKEN: u32 = 2;
const _: () = assert!(DIRTY | TAKEN == KVM_DIRTY_GFN_F_MASK);

/// Lets `vm` log dirty pages in rings of at most `entries`, a power of two. Its vCPUs must be made afterwards. Returns how many
/// entries a ring has.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::Unsupported`] if it has no rings.
pub(super) fn enable(vm: &VmFd, entries: u32) -> io::Result<u32> {
    for capability in [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING] {
        let most = vm.check_extension_raw(capability.into());
        let most = u32::try_from(most).unwrap_or(0) / size_of::<kvm_dirty_gfn>() as u32;
        if most > 0 {
            let entries = entries.min(most);
            let mut cap = kvm_enable_cap {
                cap: capability,
                ..Default::default()
            };
            cap.args[0] = u64::from(entries) * size_of::<kvm_dirty_gfn>() as u64;
            vm.enable_cap(&cap).map_err(io::Error::from)?;
            return Ok(entries);
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}

/// Protects the pages of all entries that were taken, so that a write to one makes a new entry. Returns how many entries that were.
///
/// # Errors
/// The kernel's.
pub(super) fn reset(vm: &VmFd) -> io::Result<u64> {
    // SAFETY: the call takes no argument.
    let count = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
    u64::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// The ring of one vCPU.
#[derive(Debug)]
pub(super) struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    count: u32,
    /// The next entry that KVM writes, or has written.
    next: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// The ring of `vcpu`, with `count` entries.
    ///
    /// # Errors
    /// The system's, if it cannot be mapped.
    pub(super) fn of(vcpu: &VcpuFd, count: u32) -> io::Result<Self> {
        // SAFETY: `vcpu` keeps the descriptor open during this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE;
        let len = count as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: a new mapping at an address that the kernel chooses does not affect other mappings.
        let start =
            unsafe { rustix::mm::mmap(null_mut(), len, protection, MapFlags::SHARED, fd, offset) }?;
        let entries = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            entries,
            count,
            next: 0,
        })
    }

    /// Takes the oldest entry: a slot, and the number of a page in it. None: there is none.
    pub(super) fn take(&mut self) -> Option<(u32, u64)> {
        // SAFETY: `next` is below `count`, and the mapping has `count` entries as long as `self` lives.
        let entry = unsafe { self.entries.add(self.next as usize) };
        // SAFETY: the flags of an entry are aligned and lie in the mapping; the kernel, too, accesses them as one word.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry.as_ptr()).flags) };
        if flags.load(Ordering::Acquire) & KVM_DIRTY_GFN_F_MASK != DIRTY {
            return None;
        }
        // SAFETY: the kernel does not change an entry after it has set this flag, until it was taken and reset.
        let (slot, page) = unsafe { ((*entry.as_ptr()).slot, (*entry.as_ptr()).offset) };
        flags.store(TAKEN, Ordering::Release);
        self.next = (self.next + 1) % self.count;
        Some((slot, page))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let len = self.count as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: the mapping was made in `of` with this length, and nothing refers to it after this. A failure cannot be
        // handled.
        let _ = unsafe { rustix::mm::munmap(self.entries.as_ptr().cast(), len) };
    }
}
