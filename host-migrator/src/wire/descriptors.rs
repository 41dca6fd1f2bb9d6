// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! File descriptors that travel with bytes over a unix socket (SCM_RIGHTS).
//!
//! Only [`Reader::read_with_files`] takes descriptors. The kernel closes those that come with bytes that are read otherwise.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::AddressFamily;
use spec_sockets::rights;

use super::connection::Connection;
use super::reader::{Reader, hung_up};
use super::writer::{WriteError, Writer};

impl Connection {
    /// Whether descriptors can travel over it: it is a unix socket, without TLS.
    pub(crate) fn passes_files(&self) -> bool {
        let family = rustix::net::sockopt::socket_domain(&*self.socket);
        !self.is_encrypted() && family.is_ok_and(|family| family == AddressFamily::UNIX)
    }
}

impl Writer {
    /// Writes `bytes`. The descriptors of `files`, at most [`rights::MOST`], travel with the first of them.
    pub(super) fn write_with_files(
        &mut self,
        bytes: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), WriteError> {
        let (socket, wait) = self
            .plain()
            .map_err(|source| WriteError { written: 0, source })?;
        let sent = wait.until_ready(|| rights::send_some(socket, bytes, files));
        // The descriptors are on their way with the first byte, so they must not be sent again.
        let written = sent.map_err(|source| WriteError { written: 0, source })?;
        self.write_all(&mut [IoSlice::new(&bytes[written..])])
            .map_err(|error| WriteError {
                written: written + error.written,
                ..error
            })
    }
}

impl Reader {
    /// Fills `bytes`, and adds the descriptors that travel with them to `files`, which then has at most `most`.
    pub(super) fn read_with_files(
        &mut self,
        bytes: &mut [u8],
        files: &mut Vec<OwnedFd>,
        most: usize,
    ) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let (socket, wait) = self.plain()?;
            match wait.until_ready(|| rights::receive_some(socket, &mut bytes[filled..], files))? {
                0 => return Err(hung_up()),
                count => filled += count,
            }
            self.heard_something();
            if files.len() > most {
                let text = format!("more than {most} file descriptors");
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Writer, Reader) {
        let (here, there) = UnixStream::pair().unwrap();
        let (here, there) = (Connection::try_from(here), Connection::try_from(there));
        (
            here.unwrap().split().unwrap().1,
            there.unwrap().split().unwrap().0,
        )
    }

    #[test]
    fn descriptors_arrive_in_their_order_with_the_bytes_they_were_sent_with() {
        let (mut writer, mut reader) = pair();
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let sent: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        writer.write_with_files(b"two", &sent).unwrap();
        writer.write_with_files(b"one", &sent[1..]).unwrap();
        let (mut bytes, mut got) = ([0; 6], Vec::new());
        reader.read_with_files(&mut bytes, &mut got, 3).unwrap();
        assert_eq!(&bytes, b"twoone");
        let number = |file: &File| file.metadata().unwrap().ino();
        let got: Vec<u64> = (got.into_iter())
            .map(|file| number(&File::from(file)))
            .collect();
        let [first, second] = files.each_ref().map(number);
        assert_eq!(got, [first, second, second]);
    }

    #[test]
    fn descriptors_that_nobody_expects_are_closed() {
        let (mut writer, mut reader) = pair();
        let (near, far) = std::io::pipe().unwrap();
        writer.write_with_files(b"x", &[far.as_fd()]).unwrap();
        drop(far);
        reader.read_exact(&mut [0]).unwrap();
        // The last writing end is closed, so the pipe has ended.
        let mut near = near;
        assert_eq!(io::Read::read(&mut near, &mut [0]).unwrap(), 0);
        let (other, far) = std::io::pipe().unwrap();
        writer
            .write_with_files(b"x", &[far.as_fd(), other.as_fd()])
            .unwrap();
        drop(far);
        let mut got = Vec::new();
        let error = reader.read_with_files(&mut [0], &mut got, 1).unwrap_err();
        assert!(error.to_string().contains("more than 1"), "{error}");
    }

    #[test]
    fn only_a_unix_socket_passes_descriptors() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert!(Connection::try_from(here).unwrap().passes_files());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!Connection::try_from(tcp).unwrap().passes_files());
    }
}
