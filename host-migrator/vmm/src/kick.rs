// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes a vCPU leave the guest: by KVM's `immediate_exit`, and by a signal if the vCPU is in the guest already.
#![allow(unsafe_code)]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::raw::{c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The number of the signal for vCPU threads. Its handler does nothing; the signal only interrupts KVM_RUN.
///
/// # Errors
/// The system's, if the handler cannot be set.
pub fn kick_signal() -> io::Result<c_int> {
    static REGISTERED: OnceLock<Result<(), vmm_sys_util::errno::Error>> = OnceLock::new();
    extern "C" fn interrupt(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
    let registered = REGISTERED.get_or_init(|| register_signal_handler(SIGRTMIN(), interrupt));
    registered.map_err(io::Error::from)?;
    Ok(SIGRTMIN())
}

/// The flag `immediate_exit` of a vCPU. KVM_RUN reads it before it enters the guest. If it is set, KVM_RUN only completes
/// the access that the guest was in, and fails with EINTR.
///
/// With `kvm-ioctls` only the vCPU's own thread can set the flag. This is a second mapping for the other threads.
#[derive(Debug)]
pub struct ImmediateExit {
    run: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for ImmediateExit {}
// SAFETY: all access through it is to one atomic byte.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// The flag of `vcpu`; `len` is the size of its run structure (KVM_GET_VCPU_MMAP_SIZE).
    ///
    /// # Errors
    /// The system's, if it cannot be mapped.
    pub fn of(vcpu: &VcpuFd, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `vcpu` keeps the descriptor open during this call.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses does not affect other mappings.
        let run =
            unsafe { rustix::mm::mmap(null_mut(), len, protection, MapFlags::SHARED, fd, 0) }?;
        let run = NonNull::new(run).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { run, len })
    }

    /// Sets the flag or clears it.
    pub fn set(&self, on: bool) {
        // SAFETY: the mapping is a `kvm_run` at least and lives as long as `self`; an atomic byte fits
        // anywhere. The kernel reads it as a single byte, too.
        let flag = unsafe {
            let flag = self.run.byte_add(offset_of!(kvm_run, immediate_exit));
            flag.cast::<AtomicU8>().as_ref()
        };
        flag.store(on.into(), Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `of` with this length, and nothing refers to it after this.
        // A failure cannot be handled.
        let _ = unsafe { rustix::mm::munmap(self.run.as_ptr(), self.len) };
    }
}
