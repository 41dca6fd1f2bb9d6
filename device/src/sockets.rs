// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unix sockets: listening, the removal of their files, and messages that carry file descriptors.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use spec_sockets::{Access, SocketFile, rights};

use crate::sandbox::remover::Remover;

/// The most file descriptors of a message: as many as the vhost-user crate accepts.
pub const MAX_FDS: usize = 32;

/// How long a server pauses after it could not accept a connection: what it lacked, such as file descriptors, may take
/// a while.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket. If it was bound here, its file is removed with it.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    file: Option<BoundFile>,
}

impl BoundSocket {
    /// Listens at `path` for clients that `access` lets connect. A socket file that a dead program left behind is
    /// replaced. A socket in use, or a file of another kind, is an error.
    ///
    /// # Errors
    /// The reason, and what to do about it.
    pub fn bind(path: &Path, access: Access) -> io::Result<Self> {
        let (listener, file) = spec_sockets::listen(path, access)?;
        Ok(Self {
            listener,
            file: Some(BoundFile {
                file,
                remover: None,
            }),
        })
    }

    /// The socket's file, if this program must remove it.
    pub fn file(&self) -> Option<&BoundFile> {
        self.file.as_ref()
    }

    /// Has `remover` remove the file, because this process is going to lose the right to.
    pub fn removed_by(&mut self, remover: &Arc<Remover>) {
        if let Some(file) = &mut self.file {
            file.remover = Some(Arc::clone(remover));
        }
    }
}

/// The file of a socket that was bound here, and who removes it.
#[derive(Clone, Debug)]
pub struct BoundFile {
    file: SocketFile,
    remover: Option<Arc<Remover>>,
}

impl BoundFile {
    /// The file itself.
    pub fn socket_file(&self) -> &SocketFile {
        &self.file
    }

    /// Removes the file. It is not an error if the file is gone, or if another file has its name now.
    ///
    /// # Errors
    /// Any error of the removal.
    pub fn remove(&self) -> io::Result<()> {
        match &self.remover {
            Some(remover) => remover.remove(&self.file),
            None => self.file.remove(),
        }
    }
}

/// A socket that another program has bound, and whose file it keeps.
impl From<UnixListener> for BoundSocket {
    fn from(listener: UnixListener) -> Self {
        Self {
            listener,
            file: None,
        }
    }
}

impl Deref for BoundSocket {
    type Target = UnixListener;

    fn deref(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Before the listener is closed: afterwards another program may have replaced the file.
        if let Some(file) = &self.file
            && let Err(error) = file.remove()
        {
            log::warn!("{} stays: {error}", file.file.path().display());
        }
    }
}

/// Waits until one of `fds` is readable or closed, or `deadline` has passed. Returns which are.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after the deadline.
pub fn wait<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    deadline: Option<Instant>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    wait_for(&mut polled, deadline)?;
    Ok(polled.map(|fd| !fd.revents().is_empty()))
}

/// Waits until one of `polled` has an event, or `deadline` has passed.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after the deadline.
pub fn wait_for(polled: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(polled, timeout.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Fills `bytes` from `stream`, and appends the file descriptors that arrive to `fds`. Returns `false` if the peer has
/// hung up before the first byte.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if the peer hangs up later, [`io::ErrorKind::TimedOut`] after
/// `deadline`, [`io::ErrorKind::InvalidData`] for more than [`MAX_FDS`] file descriptors.
pub fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        if deadline.is_some() {
            wait([stream.as_fd()], deadline)?;
        }
        match receive_some(stream, &mut bytes[filled..], fds) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Reads what has arrived, at most `bytes`, and appends the file descriptors that arrive to `fds`. 0 bytes mean that
/// the peer has hung up.
///
/// # Errors
/// Any error of the socket; [`io::ErrorKind::InvalidData`] for more than [`MAX_FDS`] file descriptors.
pub fn receive_some(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let received = rights::receive_some(stream, bytes, fds)?;
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message with too many file descriptors",
        ));
    }
    Ok(received)
}

/// Sends `bytes` with `fds` attached to the first of them.
///
/// # Errors
/// Any error of the socket; [`io::ErrorKind::InvalidInput`] for more than [`MAX_FDS`].
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let fds = if sent == 0 { fds } else { &[] };
        match send_some(stream, &bytes[sent..], fds) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends as much as there is room for, with `fds` attached to the first byte. Returns how many bytes were sent.
///
/// # Errors
/// As [`send`].
pub fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    rights::send_some(stream, bytes, &borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_file_descriptor_arrives_as_the_same_open_file() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&left, b"message", &[OwnedFd::from(writer)]).unwrap();
        let (mut bytes, mut fds) = ([0; 7], Vec::new());
        assert!(receive(&right, &mut bytes, &mut fds, None).unwrap());
        assert_eq!((&bytes, fds.len()), (b"message", 1));
        std::fs::File::from(fds.remove(0)).write_all(b"x").unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn half_a_message_ends_with_the_deadline() {
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(b"half").unwrap();
        let deadline = Instant::now() + Duration::from_millis(10);
        let error = receive(&right, &mut [0; 8], &mut Vec::new(), Some(deadline)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_hang_up_between_messages_is_no_error_but_one_within_is() {
        let (left, right) = UnixStream::pair().unwrap();
        drop(left);
        assert!(!receive(&right, &mut [0; 8], &mut Vec::new(), None).unwrap());
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(b"half").unwrap();
        drop(left);
        let error = receive(&right, &mut [0; 8], &mut Vec::new(), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn file_descriptors_spread_over_a_message_are_counted_together() {
        let (left, right) = UnixStream::pair().unwrap();
        let many: Vec<OwnedFd> = (0..MAX_FDS)
            .map(|_| left.as_fd().try_clone_to_owned().unwrap())
            .collect();
        send(&left, b"1", &many).unwrap();
        send(&left, b"2", &many[..1]).unwrap();
        let error = receive(&right, &mut [0; 2], &mut Vec::new(), None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
