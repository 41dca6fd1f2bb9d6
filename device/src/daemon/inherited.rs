// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front end's connection that the process was started with (`--fd`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// A duplicate of the file descriptor `fd`, if that is a unix stream socket. The original stays as it is.
///
/// (`pidfd_getfd` would do the same without `unsafe`, but the seccomp filter that Docker applies by default
/// refuses it.)
///
/// # Errors
/// If it is not an open unix stream socket.
pub(super) fn inherited(fd: RawFd) -> io::Result<UnixStream> {
    // SAFETY: a number that is not an open descriptor gives an error; an open one is neither closed nor changed.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let is_stream = socket_domain(&copy)? == AddressFamily::UNIX
        && socket_type(&copy)? == SocketType::STREAM
        && !socket_acceptconn(&copy)?;
    if !is_stream {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a unix stream socket that is connected to a VMM",
        ));
    }
    Ok(UnixStream::from(copy))
}
