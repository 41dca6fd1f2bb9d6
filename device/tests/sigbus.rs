// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SIGBUS that is not the device's business, in a program that handles SIGBUS itself: it gets it, and the device's
//! guards go on. A file of its own, as the program's handler must be there before the device's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use vhost_device_balloon::memory::sigbus::Share;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const BYTES: usize = 1 << 20;
const SENT_TO: &str = "LACUNA_TEST_SENT";

/// Where the program's own mapping lies, which its handler mends.
static OWN: AtomicUsize = AtomicUsize::new(0);
static MENDED: AtomicUsize = AtomicUsize::new(0);
static SENT: AtomicUsize = AtomicUsize::new(0);

/// The program's handler.
extern "C" fn mend_own(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code <= 0 {
        SENT.fetch_add(1, Ordering::SeqCst);
        return;
    }
    let own = OWN.load(Ordering::SeqCst);
    if !(own..own + BYTES).contains(&address) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(3) };
    }
    let (flags, all) = (
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
        libc::PROT_READ | libc::PROT_WRITE,
    );
    // SAFETY: replaces the program's own mapping, of which the test keeps no references.
    unsafe { libc::mmap(own as *mut libc::c_void, BYTES, all, flags, -1, 0) };
    MENDED.fetch_add(1, Ordering::SeqCst);
}

fn mapped() -> (File, MmapRegion) {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(BYTES as u64).unwrap();
    let region = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), BYTES);
    (file, region.unwrap())
}

/// Truncates a file and touches where it was.
fn lose(file: &File, region: &MmapRegion) {
    file.set_len(0).unwrap();
    let found: u64 = region.as_volatile_slice().read_obj(4096).unwrap();
    assert_eq!(found, 0);
}

#[test]
fn what_the_program_handled_before_it_still_does_and_the_guards_stay() {
    // SAFETY: all zero is a valid `sigaction`, and the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = mend_own as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()), 0);
    }
    let share = Share::new(1).unwrap();
    for round in 1..=3 {
        let (own_file, own) = mapped();
        OWN.store(own.as_ptr() as usize, Ordering::SeqCst);
        lose(&own_file, &own);
        assert_eq!(MENDED.load(Ordering::SeqCst), round);
        // SAFETY: the program handles the signal.
        unsafe { libc::raise(libc::SIGBUS) };
        assert_eq!(SENT.load(Ordering::SeqCst), round);
        let (file, region) = mapped();
        let guard = share.guard(region.as_ptr(), region.size(), None).unwrap();
        lose(&file, &region);
        assert!(guard.is_lost(), "the device's own handler is still there");
        drop(guard);
    }
}

#[test]
fn process_that_is_sent_the_signal() {
    if std::env::var_os(SENT_TO).is_some() {
        let _share = Share::new(1).unwrap();
        // SAFETY: ends the process, or this test goes on and the one that started it fails.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}

#[test]
fn one_that_somebody_sends_ends_a_process_that_does_not_handle_it() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_that_is_sent_the_signal"])
        .env(SENT_TO, "1")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
