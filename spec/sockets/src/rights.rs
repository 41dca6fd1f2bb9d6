// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! File descriptors that travel with bytes over a unix socket (SCM_RIGHTS, `unix(7)`).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors that the kernel passes at once (SCM_MAX_FD).
pub const MOST: usize = 253;
/// Room for their message.
const ROOM: usize = rustix::cmsg_space!(ScmRights(MOST));

/// Sends as much of `bytes` as there is room for. The descriptors of `files` travel with the first byte, so they must not be sent
/// again with the rest. Returns how many bytes were sent.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for more than [`MOST`] descriptors, or any error of the socket.
pub fn send_some(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut message = SendAncillaryBuffer::new(&mut room);
    if !files.is_empty() && !message.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let bytes = [IoSlice::new(bytes)];
    Ok(sendmsg(socket, &bytes, &mut message, SendFlags::NOSIGNAL)?)
}

/// Reads what has arrived into `bytes`, and adds the descriptors that came with it to `files`. Programs that this process starts do
/// not inherit them. 0 bytes mean that the peer has hung up.
///
/// # Errors
/// [`ErrorKind::InvalidData`] if not all descriptors could be taken, or any error of the socket.
pub fn receive_some(
    socket: impl AsFd,
    bytes: &mut [u8],
    files: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut message = RecvAncillaryBuffer::new(&mut room);
    let mut bytes = [IoSliceMut::new(bytes)];
    let received = recvmsg(socket, &mut bytes, &mut message, RecvFlags::CMSG_CLOEXEC)?;
    for part in message.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = part {
            files.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // The kernel has closed those that it could not pass.
        let text = "not all file descriptors could be taken: this process may open no more, or other data came with them";
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    Ok(received.bytes)
}
