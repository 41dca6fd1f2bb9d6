// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to the host: any file that can be read and written.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use vsock::{VsockAddr, VsockStream};

/// The address of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The virtio-console port of this name.
    Virtio(String),
    /// A vsock address; the host has the context id 2.
    Vsock {
        /// The context id.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// A character device, or anything else that can be opened for reading and writing.
    Device(PathBuf),
}

/// Why a text is not an address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("'{0}' is not an address: write virtio:NAME, vsock:CID:PORT or the path of a device")]
pub struct NoAddress(String);

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let error = || NoAddress(text.into());
        if let Some(name) = text.strip_prefix("virtio:") {
            let is_name = !name.is_empty() && !name.contains('/');
            return is_name.then(|| Self::Virtio(name.into())).ok_or_else(error);
        }
        if let Some(rest) = text.strip_prefix("vsock:") {
            let (cid, port) = rest.split_once(':').ok_or_else(error)?;
            return match (cid.parse(), port.parse()) {
                (Ok(cid), Ok(port)) => Ok(Self::Vsock { cid, port }),
                _ => Err(error()),
            };
        }
        if text.starts_with('/') {
            return Ok(Self::Device(text.into()));
        }
        Err(error())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtio(name) => write!(f, "virtio:{name}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Device(path) => path.display().fmt(f),
        }
    }
}

/// An open connection. It blocks only where stated.
#[derive(Debug)]
pub struct Port(OwnedFd);

impl Port {
    /// Opens the connection to the host at `address`.
    ///
    /// # Errors
    /// If there is no such device, another program uses it, or the host does not listen.
    pub fn open(address: &Address) -> io::Result<Self> {
        let fd = match address {
            Address::Virtio(name) => open_device(&virtio_port(name)?)?,
            Address::Vsock { cid, port } => {
                VsockStream::connect(&VsockAddr::new(*cid, *port))?.into()
            }
            Address::Device(path) => open_device(path)?,
        };
        Self::of(fd)
    }

    /// A connection over an open file.
    pub(crate) fn of(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        if isatty(&fd) {
            let mut settings = tcgetattr(&fd)?;
            settings.make_raw();
            tcsetattr(&fd, OptionalActions::Now, &settings)?;
        }
        Ok(Self(fd))
    }

    /// Reads the bytes that have arrived. Returns their number, 0 at the end, `None` if there are none yet.
    ///
    /// # Errors
    /// Whatever the connection says.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.0, bytes) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            // The other end of a terminal was closed.
            Err(Errno::IO) => Ok(Some(0)),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes all of `bytes`. Waits while the host accepts none.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] if the host has disconnected, or another error of the connection.
    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let write = |bytes: &[u8]| rustix::io::write(&self.0, bytes);
        write_all(bytes, write, || self.wait(PollFlags::OUT, None).map(drop))
    }

    /// Waits for something to read; `false` if `timeout` passes first.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] if the host has disconnected.
    pub fn readable(&self, timeout: Option<Timespec>) -> io::Result<bool> {
        self.wait(PollFlags::IN, timeout)
    }

    fn wait(&self, flags: PollFlags, timeout: Option<Timespec>) -> io::Result<bool> {
        let mut polled = [PollFd::from_borrowed_fd(self.0.as_fd(), flags)];
        loop {
            match poll(&mut polled, timeout.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) if polled[0].revents().intersects(flags) => return Ok(true),
                // A virtio port reports this while no program of the host has opened its end.
                Ok(_) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Writes all of `bytes` with `write`. Calls `wait` when nothing can be written at the moment.
fn write_all(
    mut bytes: &[u8],
    mut write: impl FnMut(&[u8]) -> Result<usize, Errno>,
    mut wait: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(bytes) {
            // A virtio port reports this when its queue is full. Trying again at once would be a busy loop.
            Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::AGAIN) => wait()?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn open_device(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(open(path, flags, Mode::empty())?)
}

/// The device of the virtio-console port `name`. Without udev there is no link with that name, so the kernel's own
/// table is read.
fn virtio_port(name: &str) -> io::Result<PathBuf> {
    let folder = fs::read_dir("/sys/class/virtio-ports").map_err(|_| no_port(name))?;
    for port in folder.flatten() {
        let found = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            return Ok(Path::new("/dev").join(port.file_name()));
        }
    }
    Err(no_port(name))
}

fn no_port(name: &str) -> io::Error {
    let text = format!("this machine has no virtio-console port '{name}'");
    io::Error::new(io::ErrorKind::NotFound, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["virtio:org.lacuna.agent.0", "vsock:2:1024", "/dev/ttyS1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "virtio:",
            "virtio:a/b",
            "vsock:2",
            "vsock:host:1",
            "ttyS1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_that_takes_nothing_ends_the_write() {
        let mut answers = [Err(Errno::INTR), Ok(2), Err(Errno::AGAIN), Ok(0)].into_iter();
        let mut waits = 0;
        let wait = || {
            waits += 1;
            Ok(())
        };
        let written = write_all(b"hello", |_| answers.next().unwrap(), wait);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(waits, 1);
    }

    #[test]
    fn a_port_that_does_not_exist_is_named() {
        let error = Port::open(&Address::Virtio("no.such.port".into())).unwrap_err();
        assert!(error.to_string().contains("no.such.port"));
    }
}
