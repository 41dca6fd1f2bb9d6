// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets that the process was started with, which its user names by number.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

/// The first number that is not a standard stream.
const FIRST: u32 = 3;

/// Takes the stream sockets with these `numbers`, as [`stream_socket`] takes one.
///
/// # Errors
/// As of [`stream_socket`]. Those that were taken before are closed.
pub fn stream_sockets(numbers: &[u32]) -> io::Result<Vec<OwnedFd>> {
    numbers.iter().copied().map(stream_socket).collect()
}

/// Takes the stream socket that the process was started with as descriptor `number`. It can be taken once.
///
/// Only descriptors that are inherited by other programs are taken. All that this process has opened are not, so that a wrong
/// number cannot take a socket that the process itself uses.
///
/// # Errors
/// If it is not such a socket; then the descriptor stays as it is.
pub fn stream_socket(number: u32) -> io::Result<OwnedFd> {
    let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if number < FIRST {
        return invalid("descriptors below 3 are the standard streams");
    }
    let fd = RawFd::try_from(number).map_err(|_| io::Error::from(Errno::BADF))?;
    // SAFETY: this reads the flags of a number, or gives an error.
    match unsafe { libc::fcntl(fd, libc::F_GETFD) } {
        flags if flags < 0 => return Err(io::Error::last_os_error()),
        flags if flags & libc::FD_CLOEXEC != 0 => {
            return invalid("the process was not started with this descriptor");
        }
        _ => {}
    }
    // (`pidfd_getfd` would copy it without `unsafe`, but the seccomp filter that Docker applies by default refuses it.)
    // SAFETY: a number that is not an open descriptor gives an error; an open one is neither closed nor changed.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    match socket_type(&copy) {
        Ok(SocketType::STREAM) => {}
        Ok(_) => return invalid("it is a socket, but not of a stream"),
        Err(_) => return invalid("it is not a socket"),
    }
    // Otherwise the other side would not see the end of the connection.
    // SAFETY: it is a socket without close-on-exec. All sockets that Rust programs open have close-on-exec, so this one was
    // inherited, and nothing in this process owns it.
    unsafe { libc::close(fd) };
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;

    /// As another program hands `socket` to this one.
    fn inherited(socket: impl Into<OwnedFd>) -> u32 {
        let socket = socket.into();
        fcntl_setfd(&socket, FdFlags::empty()).unwrap();
        socket.into_raw_fd().try_into().unwrap()
    }

    #[test]
    fn an_inherited_socket_is_taken_whole_so_that_its_peer_sees_the_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let taken = stream_socket(inherited(ours)).unwrap();
        drop(taken);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_descriptor_of_the_process_itself_is_not_taken() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = stream_socket(ours.as_raw_fd() as u32).unwrap_err();
        assert!(error.to_string().contains("not started with"), "{error}");
        assert!(ours.peer_addr().is_ok());
    }

    #[test]
    fn what_is_not_a_stream_socket_is_refused_by_name() {
        let file = inherited(File::open("/dev/null").unwrap());
        let datagram = inherited(UnixDatagram::unbound().unwrap());
        for (number, text) in [
            (file, "not a socket"),
            (datagram, "not of a stream"),
            (0, "standard streams"),
            (u32::MAX, "Bad file descriptor"),
            (1_000_000, "Bad file descriptor"),
        ] {
            let error = stream_socket(number).unwrap_err().to_string();
            assert!(error.contains(text), "{number}: {error}");
        }
    }
}
