// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts a child process that has only its parent's memory and one socket.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A child process, as its parent sees it.
#[derive(Debug)]
pub(super) struct ChildProcess {
    /// The parent's end of a pair of sockets that keep messages apart.
    pub(super) channel: OwnedFd,
    /// Becomes readable when the process has ended. `None` on a kernel before 5.3.
    pub(super) ended: Option<OwnedFd>,
}

/// Has a child process do `work` with one end of a pair of sockets. The child ends after `work`. No signal that can be
/// blocked reaches it.
///
/// # Errors
/// If the process has more than one thread, or its limits leave no room for the child.
pub(super) fn start(work: impl FnOnce(OwnedFd)) -> io::Result<ChildProcess> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has threads already"));
    }
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Blocked before the fork: the child must never run a handler, because it shares the handler's pipe with its
    // parent.
    let before = block_signals()?;
    // SAFETY: there is only one thread. So no other thread, which the child would not have, can hold a lock of the C
    // library or of this program.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(ours);
        // The child must not drop what the parent owns, such as the sockets' files. So it never returns.
        let _ = catch_unwind(AssertUnwindSafe(|| work(theirs)));
        // SAFETY: ends the process without running what the parent has registered for its own end.
        unsafe { libc::_exit(0) };
    }
    let failed = (child < 0).then(io::Error::last_os_error);
    // SAFETY: `before` is a set that the kernel has filled.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut()) };
    if let Some(error) = failed {
        return Err(error);
    }
    let ended = Pid::from_raw(child).and_then(|it| pidfd_open(it, PidfdFlags::empty()).ok());
    Ok(ChildProcess {
        channel: ours,
        ended,
    })
}

/// Closes all descriptors except `kept`, which becomes descriptor 0.
///
/// # Errors
/// If some may have stayed open.
pub(super) fn close_others(kept: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: this process uses the old descriptor 0 no more: it must keep only `kept`.
    if kept.as_raw_fd() != 0 && unsafe { libc::dup2(kept.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // It is closed with the others, or is descriptor 0 itself.
    std::mem::forget(kept);
    // SAFETY: no owner of a descriptor from 1 on is used or dropped in this process any more.
    if unsafe { libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0u32) } != 0 {
        // A kernel before 5.9, or a filter that does not know the call.
        for entry in fs::read_dir("/proc/self/fd")?.collect::<Result<Vec<_>, _>>()? {
            let number = entry.file_name().to_str().and_then(|it| it.parse().ok());
            if let Some(number @ 1..) = number {
                // SAFETY: as above; one that is closed already gives an error.
                unsafe { libc::close(number) };
            }
        }
    }
    // SAFETY: descriptor 0 is the duplicate that was made above, or `kept`, which was forgotten.
    Ok(unsafe { OwnedFd::from_raw_fd(0) })
}

/// Blocks all signals of the calling thread and returns what was blocked before.
fn block_signals() -> io::Result<libc::sigset_t> {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: fills the set that it gets.
    let filled = unsafe { libc::sigfillset(all.as_mut_ptr()) };
    debug_assert_eq!(filled, 0);
    // SAFETY: reads a set that is filled, and fills the other.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr()) };
    match error {
        // SAFETY: the call succeeded, so it filled the set.
        0 => Ok(unsafe { before.assume_init() }),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
