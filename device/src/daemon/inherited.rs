// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front end's connection that the process was started with (`--fd`).

use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

/// The unix stream socket that the process was started with as descriptor `fd`.
///
/// # Errors
/// If it is not such a socket, or is not connected.
pub(super) fn inherited(fd: RawFd) -> io::Result<UnixStream> {
    let number = u32::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput)?;
    let socket = spec_sockets::inherited::stream_socket(number)?;
    if socket_domain(&socket)? == AddressFamily::UNIX && !socket_acceptconn(&socket)? {
        return Ok(UnixStream::from(socket));
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is not a unix stream socket that is connected to a VMM",
    ))
}
