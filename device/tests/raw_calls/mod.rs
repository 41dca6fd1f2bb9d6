// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls that a compromised process might try, and that no safe function makes.
#![allow(unsafe_code)]

use std::os::unix::process::parent_id;
use std::ptr::null_mut;

const BYTES: usize = 4096;

/// Maps a page with these rights.
pub fn map(protection: i32) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses an unused address.
    unsafe { libc::mmap(null_mut(), BYTES, protection, flags, -1, 0) }
}

/// Makes a page of this process executable.
pub fn make_executable() {
    let page = map(libc::PROT_READ | libc::PROT_WRITE);
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: the page belongs to this function, and nothing uses it.
    unsafe { libc::mprotect(page, BYTES, libc::PROT_READ | libc::PROT_EXEC) };
}

/// Asks whether a signal could be sent to the parent.
pub fn signal_parent() {
    let parent = parent_id();
    // SAFETY: signal 0 delivers nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, parent, parent, 0) };
}

/// Asks whether a signal could be sent to the calling thread.
pub fn signal_self() {
    // SAFETY: signal 0 delivers nothing.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), libc::gettid(), 0) };
    assert_eq!(result, 0);
}
