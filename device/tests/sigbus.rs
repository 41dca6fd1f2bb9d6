// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A SIGBUS that has nothing to do with the device, in a program with a handler of its own: the program's handler gets
//! the signal, and the device's guards still work. This test has a file of its own, because the program's handler must
//! be installed before the device's.
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

/// Where the program's own mapping lies, which its handler replaces.
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
    // SAFETY: replaces the program's own mapping, to which the test holds no reference.
    unsafe { libc::mmap(own as *mut libc::c_void, BYTES, all, flags, -1, 0) };
    MENDED.fetch_add(1, Ordering::SeqCst);
}

fn mapped() -> (File, MmapRegion) {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(BYTES as u64).unwrap();
    let region = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), BYTES);
    (file, region.unwrap())
}

/// Truncates a file and touches the mapping of what it lost.
fn lose(file: &File, region: &MmapRegion) {
    file.set_len(0).unwrap();
    let found: u64 = region.as_volatile_slice().read_obj(4096).unwrap();
    assert_eq!(found, 0);
}

#[test]
fn the_programs_own_handler_still_works_and_so_do_the_guards() {
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
        assert!(guard.is_lost(), "the device's own guard still works");
        drop(guard);
    }
}

#[test]
fn process_that_is_sent_the_signal() {
    if std::env::var_os(SENT_TO).is_some() {
        let _share = Share::new(1).unwrap();
        // SAFETY: the signal ends the process. Otherwise this test goes on, and the test that started it fails.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}

#[test]
fn a_sigbus_that_another_process_sends_ends_a_process_without_a_handler() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_that_is_sent_the_signal"])
        .env(SENT_TO, "1")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
