// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lent memory that disappears under the device.
//!
//! A front end can truncate a file after the device has mapped it. An access to the lost part raises `SIGBUS`, which
//! ends a process: all its devices, because of one hostile front end. With a [`Guard`] on a mapping, such a fault
//! replaces the whole mapping by zero pages and wakes the owner, who then ends that connection. Any other `SIGBUS` goes
//! to its earlier handler, and this handler stays in place for the next.
//!
//! Each device has a [`Share`] of guards, so no device can use up another's.
//!
//! The handler reads atomics and calls `mmap`, `write`, `sigaction` and `raise`, which are all allowed in a signal
//! handler. A seccomp filter must allow `mmap`, `write` to the owner's eventfd, `rt_sigaction`, `tgkill` and
//! `rt_sigreturn`.
#![allow(unsafe_code)]

mod table;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use table::{Guarded, Slot, Table};

static TABLE: Table = Table::new();
/// The earlier handler of `SIGBUS`. Written once, before this handler can run.
static BEFORE: Before = Before(std::cell::UnsafeCell::new(MaybeUninit::zeroed()));

struct Before(std::cell::UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: `install` writes it once, under a lock and before the handler is in place; after that it is only
// read.
unsafe impl Sync for Before {}

/// A number of guards for one user, who cannot have more and always gets as many.
#[derive(Clone, Debug)]
pub struct Share(Arc<Promise>);

#[derive(Debug)]
struct Promise {
    guards: usize,
    used: AtomicUsize,
}

impl Share {
    /// A share of `guards` guards.
    ///
    /// # Errors
    /// If the signal handler cannot be installed.
    pub fn new(guards: usize) -> io::Result<Self> {
        install()?;
        TABLE.promise(guards);
        Ok(Self(Arc::new(Promise {
            guards,
            used: AtomicUsize::new(0),
        })))
    }

    /// Guards the `length` bytes that are mapped at `start`, which must be the whole mapping. `wake` is an
    /// eventfd that is written when the mapping is lost; it must stay open as long as the guard lives.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] if the share is used up; nothing has changed then.
    pub fn guard(
        &self,
        start: *const u8,
        length: usize,
        wake: Option<BorrowedFd<'_>>,
    ) -> io::Result<Guard> {
        let promise = &self.0;
        let start = start as usize;
        let end = start.checked_add(length).filter(|_| length != 0);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let take = |used| (used < promise.guards).then_some(used + 1);
        let taken = promise
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map_err(|_| {
            let text = format!(
                "all {} memory guards of this device are in use",
                promise.guards
            );
            io::Error::new(io::ErrorKind::OutOfMemory, text)
        })?;
        let wake = wake.map(|wake| wake.as_raw_fd());
        match TABLE.fill(Guarded { start, end, wake }) {
            Ok(slot) => Ok(Guard {
                slot,
                promise: Arc::clone(promise),
            }),
            Err(error) => {
                promise.used.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        TABLE.take_back(self.guards);
    }
}

/// Keeps a fault in one mapping from ending the process. Must be dropped before the mapping is unmapped.
#[derive(Debug)]
pub struct Guard {
    slot: &'static Slot,
    promise: Arc<Promise>,
}

impl Guard {
    /// Whether the mapping has been lost and replaced by private zero pages.
    pub fn is_lost(&self) -> bool {
        self.slot.is_lost()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE.free(self.slot);
        self.promise.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Installs the handler, once for the process.
fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock();
    if *installed {
        return Ok(());
    }
    // SAFETY: all zero is a valid `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler();
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

/// [`on_sigbus`] as the kernel represents a handler.
fn handler() -> usize {
    on_sigbus as *const () as usize
}

/// Repairs a fault in a guarded mapping. The faulting instruction then runs again, and reads or writes zero pages.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the location of this thread's error number, which the interrupted code may be about to read.
    let error_number = unsafe { *libc::__errno_location() };
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`. A SIGBUS carries an address; a signal that a
    // process sent is recognised by its code before the address is used.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Broken memory that no thread has touched is reported with its own code: no access waits to be repeated.
    let is_fault = code > 0 && code != libc::BUS_MCEERR_AO;
    if !(is_fault && mend(address)) {
        pass_on(signal, info, context, is_fault);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = error_number };
}

/// Has the earlier handler handle the signal. This handler stays in place for other threads. `is_fault` says that the
/// signal comes again if nobody repairs its cause.
fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_fault: bool,
) {
    // SAFETY: `install` filled it in before this handler could run.
    let before = unsafe { (*BEFORE.0.get()).assume_init_ref() };
    match before.sa_sigaction {
        libc::SIG_IGN if !is_fault => {}
        // A fault cannot be ignored.
        libc::SIG_DFL | libc::SIG_IGN => end_process(),
        handler_before if before.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: neither of the two numbers that are no handlers, so it is the address of one, which takes
            // these arguments as SA_SIGINFO is set.
            let before: Handler = unsafe { std::mem::transmute(handler_before) };
            before(signal, info, context);
            end_if_given_up(is_fault);
        }
        handler_before => {
            // SAFETY: as above, without SA_SIGINFO.
            let before: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler_before) };
            before(signal);
            end_if_given_up(is_fault);
        }
    }
}

/// A handler may restore the default action and return, so that the fault comes again and ends the process (Rust's own
/// handler does). A signal that is no fault does not come again: without this function the process would live on
/// without a handler.
fn end_if_given_up(is_fault: bool) {
    // SAFETY: all zero is a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only reads what is set now.
    let read = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut now) };
    if !is_fault && read == 0 && now.sa_sigaction == libc::SIG_DFL {
        end_process();
    }
}

/// Ends the process by SIGBUS, which is blocked until the handler returns.
fn end_process() {
    // SAFETY: both calls are async-signal-safe.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        libc::raise(libc::SIGBUS);
    }
}

/// Replaces the guarded mapping that contains `address`. Returns `false` if there is none.
fn mend(address: usize) -> bool {
    let Some((slot, Guarded { start, end, wake })) = TABLE.find(address) else {
        return false;
    };
    // Shared, not private: a limit on private memory (RLIMIT_DATA) could forbid as much as a guest has. The whole
    // mapping, not a page: every page would become a mapping of its own, and their number is limited.
    // SAFETY: the slot's owner promised that this is one whole mapping of his, which lives longer than the slot
    // is in the table; it holds plain memory that others may change at any time, so zeroes break nothing. The
    // slot is in the table as long as this thread is in its access, and was read in one piece.
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
    slot.lose();
    if let Some(wake) = wake {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes of this stack to a file descriptor, which the slot's owner keeps open. A full
        // counter has woken him already.
        unsafe { libc::write(wake, one.as_ptr().cast(), 8) };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};

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

    fn guard(share: &Share, region: &MmapRegion, wake: &OwnedFd) -> io::Result<Guard> {
        share.guard(region.as_ptr(), region.size(), Some(wake.as_fd()))
    }

    #[test]
    fn memory_that_is_truncated_reads_as_zeroes_and_wakes_its_owner() {
        let wake = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let (file, region) = mapped(8 << 20);
        let (_other, neighbour) = mapped(1 << 20);
        let share = Share::new(2).unwrap();
        let guards = [&region, &neighbour].map(|region| guard(&share, region, &wake).unwrap());
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
    fn a_share_that_is_used_up_refuses_more_and_takes_nothing_from_others() {
        let wake = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let regions: Vec<_> = (0..600).map(|_| mapped(4096)).collect();
        let (greedy, modest) = (Share::new(599).unwrap(), Share::new(1).unwrap());
        let mut guards: Vec<_> = regions[1..]
            .iter()
            .map(|(_, region)| guard(&greedy, region, &wake).unwrap())
            .collect();
        for _ in 0..1000 {
            let refusal = guard(&greedy, &regions[0].1, &wake).unwrap_err();
            assert_eq!(refusal.kind(), io::ErrorKind::OutOfMemory);
            assert!(refusal.to_string().contains("599"), "{refusal}");
        }
        let other = guard(&modest, &regions[0].1, &wake).unwrap();
        assert!(guard(&modest, &regions[0].1, &wake).is_err());
        // Each of them still works.
        for (file, region) in &regions {
            file.set_len(0).unwrap();
            assert_eq!(region.as_volatile_slice().read_obj::<u64>(0).unwrap(), 0);
        }
        assert!(other.is_lost() && guards.iter().all(Guard::is_lost));
        // A guard that was dropped can be taken again.
        guards.pop();
        let again = guard(&greedy, &regions[599].1, &wake).unwrap();
        assert!(!again.is_lost());
    }
}
