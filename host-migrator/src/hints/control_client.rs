// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection to a balloon device's control socket (`spec/control-protocol.md`), for migrators and people.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use spec::control::{ControlError, HEADER_BYTES, Header, MAX_PAYLOAD, Reply, Request, VERSION};

use crate::vm::hint_source::HintError;
use crate::wire::connect_unix;

/// A connected device that has answered Hello.
///
/// After an error other than [`HintError::Refused`] the connection must be closed. A late answer would be mistaken for
/// the answer to the next request.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    patience: Duration,
    sequence: u32,
}

impl ControlClient {
    /// Connects to the control socket at `path` and sends Hello. Every answer must come within `patience`.
    ///
    /// # Errors
    /// [`HintError`] if no device answers there, or it has another protocol version.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, HintError> {
        let stream = connect_unix(path, patience)?;
        stream.set_write_timeout(Some(patience))?;
        let mut client = Self {
            stream,
            patience,
            sequence: 0,
        };
        let hello = Request::Hello { version: VERSION };
        match client.ask(hello, None)? {
            Reply::Hello {
                version: VERSION, ..
            } => Ok(client),
            other => Err(HintError::unexpected(hello, other)),
        }
    }

    /// Sends `request` with `fd`, and returns the answer.
    ///
    /// # Errors
    /// [`HintError::Refused`] if the device refuses; other errors if it does not answer properly.
    pub fn ask(
        &mut self,
        request: Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Reply, HintError> {
        self.exchange(request, fd).map(|(reply, _)| reply)
    }

    /// As [`ControlClient::ask`], with the file descriptor that came with the answer, if there is one. It is a memory file
    /// sealed against changes.
    ///
    /// # Errors
    /// As [`ControlClient::ask`], and [`HintError::Protocol`] for any other file, because reading it might block for ever.
    pub fn ask_for_file(
        &mut self,
        request: Request,
    ) -> Result<(Reply, Option<OwnedFd>), HintError> {
        let (reply, file) = self.exchange(request, None)?;
        // Only memory files have seals, and this query does not involve a file system.
        let sealed = SealFlags::WRITE | SealFlags::SHRINK;
        let is_sealed = |file: &OwnedFd| fcntl_get_seals(file).is_ok_and(|it| it.contains(sealed));
        match file {
            Some(file) if !is_sealed(&file) => {
                let text = "the answer's file is not a sealed memory file".into();
                Err(HintError::Protocol(text))
            }
            file => Ok((reply, file)),
        }
    }

    fn exchange(
        &mut self,
        request: Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), HintError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
        let length = request.encode(self.sequence, &mut frame);
        self.send(&frame[..length], fd)?;
        let deadline = Instant::now() + self.patience;
        let mut file = None;
        let mut header = [0; HEADER_BYTES];
        self.receive(&mut header, &mut file, deadline)?;
        let protocol = |error: ControlError| HintError::Protocol(error.to_string());
        let header = Header::from_bytes(&header).map_err(protocol)?;
        let mut payload = [0; MAX_PAYLOAD];
        let payload = &mut payload[..header.length as usize];
        self.receive(payload, &mut file, deadline)?;
        if header.sequence != self.sequence {
            let text = format!("answer {} to request {}", header.sequence, self.sequence);
            return Err(HintError::Protocol(text));
        }
        match Reply::decode(&header, payload).map_err(protocol)? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok((reply, file)),
        }
    }

    fn send(&mut self, frame: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fds: &[BorrowedFd<'_>] = fd.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            // There is space for one file descriptor only.
            let fits = message.push(SendAncillaryMessage::ScmRights(fds));
            debug_assert!(fits);
        }
        let parts = [IoSlice::new(frame)];
        let sent = sendmsg(&self.stream, &parts, &mut message, SendFlags::NOSIGNAL)?;
        self.stream.write_all(&frame[sent..])
    }

    /// Fills `bytes` before `deadline`, however slowly they arrive, and keeps the file descriptor that comes with them.
    /// (There is room for one; the kernel closes any other.)
    fn receive(
        &mut self,
        bytes: &mut [u8],
        file: &mut Option<OwnedFd>,
        deadline: Instant,
    ) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut bytes[filled..])];
            let received = recvmsg(
                &self.stream,
                &mut parts,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    *file = fds.last().or(file.take());
                }
            }
            match received.map(|message| message.bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};
    use spec::control::PageSet;

    /// A device that answers Hello, and then answers the next request with a page map of no bytes and `file`.
    fn device(listener: &UnixListener, file: &OwnedFd) {
        let (mut stream, _) = listener.accept().unwrap();
        let hello = Reply::Hello {
            version: VERSION,
            features: 0,
        };
        for (reply, fds) in [
            (hello, &[][..]),
            (Reply::PageMap { bytes: 0 }, &[file.as_fd()]),
        ] {
            let mut header = [0; HEADER_BYTES];
            stream.read_exact(&mut header).unwrap();
            let header = Header::from_bytes(&header).unwrap();
            let mut payload = vec![0; header.length as usize];
            stream.read_exact(&mut payload).unwrap();
            let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
            let length = reply.encode(header.sequence, &mut frame);
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut message = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                assert!(message.push(SendAncillaryMessage::ScmRights(fds)));
            }
            let parts = [IoSlice::new(&frame[..length])];
            sendmsg(&stream, &parts, &mut message, SendFlags::NOSIGNAL).unwrap();
        }
    }

    fn answer_with(file: OwnedFd) -> Result<(Reply, Option<OwnedFd>), HintError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| device(&listener, &file));
            let mut client = ControlClient::connect(&path, Duration::from_secs(60)).unwrap();
            client.ask_for_file(Request::PageMap(PageSet::Hinted))
        })
    }

    #[test]
    fn a_file_of_the_devices_is_taken_only_if_it_is_memory_that_nobody_changes() {
        let memory = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            memfd_create("page-map", flags).unwrap()
        };
        let sealed = memory();
        fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SHRINK).unwrap();
        assert!(matches!(answer_with(sealed), Ok((_, Some(_)))));
        // Nobody ever writes into that pipe.
        let (pipe, _writer) = io::pipe().unwrap();
        for other in [memory(), pipe.into()] {
            let refused = answer_with(other);
            assert!(
                matches!(refused, Err(HintError::Protocol(_))),
                "{refused:?}"
            );
        }
    }
}
