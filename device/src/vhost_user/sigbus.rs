// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory of the front end that disappears under the device.
//!
//! A front end can truncate a file after the device has mapped it. An access to what is gone raises `SIGBUS`,
//! which ends a process: all its devices, for one hostile front end. With a [`Guard`] on a mapping, such a
//! fault replaces the whole mapping by zero pages and wakes the owner, who then ends that connection. A
//! fault anywhere else is treated as it was before.
//!
//! The handler reads atomics and calls `mmap`, `write`, `sigaction` and `raise`: all may be called in a
//! signal handler. A seccomp filter must let it have `mmap`, `write` to the wake-up call, `rt_sigaction` and
//! `rt_sigreturn`.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Mappings that can be guarded at once: several devices with 509 memory slots each.
const SLOTS: usize = 4096;
/// The start of a slot that nobody uses.
const FREE: usize = 0;
/// The start of a slot that is being filled in: no address lies at or above it.
const TAKEN: usize = usize::MAX;

static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];
/// What was done about `SIGBUS` before; written once, before the handler can run.
static BEFORE: Before = Before(std::cell::UnsafeCell::new(MaybeUninit::zeroed()));

struct Before(std::cell::UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: `install` writes it once, under a lock and before the handler is in place; after that it is only
// read.
unsafe impl Sync for Before {}

/// A guarded mapping, as the handler finds it.
#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    wake: AtomicI32,
    lost: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            start: AtomicUsize::new(FREE),
            end: AtomicUsize::new(0),
            wake: AtomicI32::new(-1),
            lost: AtomicBool::new(false),
        }
    }
}

/// Keeps a fault in one mapping from ending the process. To be dropped before the mapping is unmapped.
#[derive(Debug)]
pub struct Guard(&'static Slot);

impl Guard {
    /// Guards the `length` bytes that are mapped at `start`, which must be the whole mapping. `wake` is an
    /// eventfd that is written when the mapping is lost; it must stay open as long as the guard lives.
    ///
    /// # Errors
    /// If the signal handler cannot be installed, or too many mappings are guarded already.
    pub fn new(start: *const u8, length: usize, wake: BorrowedFd<'_>) -> io::Result<Self> {
        install()?;
        let full = || io::Error::new(io::ErrorKind::OutOfMemory, "too many mappings");
        let end = (start as usize).checked_add(length).ok_or_else(full)?;
        let slot = TABLE
            .iter()
            .find(|slot| {
                let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
                slot.start
                    .compare_exchange(FREE, TAKEN, success, failure)
                    .is_ok()
            })
            .ok_or_else(full)?;
        slot.end.store(end, Ordering::Relaxed);
        slot.wake.store(wake.as_raw_fd(), Ordering::Relaxed);
        slot.lost.store(false, Ordering::Relaxed);
        slot.start.store(start as usize, Ordering::Release);
        Ok(Self(slot))
    }

    /// Whether the mapping has been lost: what is there now are zero pages that nobody shares.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::Relaxed);
        self.0.start.store(FREE, Ordering::Release);
    }
}

/// Installs the handler, once for the process.
fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: all zero is a valid `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the first call only reads what was set before into memory of the right type that nobody else
    // uses yet; the second sets a handler with the signature that SA_SIGINFO asks for.
    let result = unsafe {
        match libc::sigaction(libc::SIGBUS, ptr::null(), (*BEFORE.0.get()).as_mut_ptr()) {
            0 => libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()),
            failed => failed,
        }
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// Mends a fault in a guarded mapping. The faulting instruction then runs again, and reads or writes zero
/// pages.
extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the location of this thread's error number, which the interrupted code may be about to read.
    let error_number = unsafe { *libc::__errno_location() };
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`; a SIGBUS carries an address, and one that
    // another process sent is told by its code before the address is used.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code <= 0 {
        // SAFETY: both calls are async-signal-safe. A signal that somebody sent does not come again by itself.
        unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            libc::raise(libc::SIGBUS);
        }
    } else if !mend(address) {
        // SAFETY: `BEFORE` was filled in before this handler was installed. The fault comes again, and finds
        // what was there before.
        unsafe { libc::sigaction(libc::SIGBUS, (*BEFORE.0.get()).as_ptr(), ptr::null_mut()) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = error_number };
}

/// Replaces the guarded mapping that `address` lies in; `false` if there is none.
fn mend(address: usize) -> bool {
    let found = TABLE.iter().find_map(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Relaxed);
        (start != FREE && start <= address && address < end).then_some((slot, start, end))
    });
    let Some((slot, start, end)) = found else {
        return false;
    };
    // Shared rather than private: a limit on private memory (RLIMIT_DATA) could forbid as much as a guest has.
    // All of it rather than a page: every page would be a mapping of its own, and their number is limited.
    // SAFETY: the slot's owner promised that this is one whole mapping of his, which lives longer than the slot
    // is in the table; it holds plain memory that others may change at any time, so zeroes break nothing.
    let mapped = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            end - start,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    slot.lost.store(true, Ordering::Release);
    let one = 1u64.to_ne_bytes();
    // SAFETY: writes eight bytes of this stack to a file descriptor, which the slot's owner keeps open. A full
    // counter has woken him already.
    unsafe { libc::write(slot.wake.load(Ordering::Relaxed), one.as_ptr().cast(), 8) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

    fn mapped(bytes: u64) -> (File, MmapRegion) {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        let copy = file.try_clone().unwrap();
        let region = MmapRegion::from_file(FileOffset::new(copy, 0), bytes as usize).unwrap();
        (file, region)
    }

    #[test]
    fn memory_that_is_truncated_reads_as_zeroes_and_wakes_its_owner() {
        let wake = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let (file, region) = mapped(8 << 20);
        let (_other, neighbour) = mapped(1 << 20);
        let guards = [&region, &neighbour]
            .map(|region| Guard::new(region.as_ptr(), region.size(), wake.as_fd()).unwrap());
        let memory = region.as_volatile_slice();
        memory.write_obj(7u64, 4096).unwrap();
        assert_eq!(memory.read_obj::<u64>(4096).unwrap(), 7);
        assert!(!guards[0].is_lost());
        file.set_len(0).unwrap();
        assert_eq!(memory.read_obj::<u64>(4096).unwrap(), 0);
        memory.write_obj(9u64, (8 << 20) - 8).unwrap();
        assert!(guards[0].is_lost());
        assert!(!guards[1].is_lost(), "only the one that was touched");
        let mut count = [0; 8];
        rustix::io::read(&wake, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1, "one fault for all of it");
    }

    #[test]
    fn a_guard_that_is_gone_leaves_its_place_to_the_next() {
        let wake = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let (_file, region) = mapped(4096);
        for _ in 0..2 * SLOTS {
            Guard::new(region.as_ptr(), region.size(), wake.as_fd()).unwrap();
        }
    }
}
