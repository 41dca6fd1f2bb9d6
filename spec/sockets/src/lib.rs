// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the programs of Lacuna listen on a path of the file system, and read a secret from one.
//!
//! All of them use [`listen`], so that all keep the same two promises:
//!
//! - **Nobody loses a file.** Only a socket on which no program listens any more is replaced. A living socket, a
//!   plain file, a folder and a symbolic link stay as they are, and the caller gets an error that says so.
//! - **Nobody connects who was not meant to.** The file has the rights of [`Access`] under any umask, and at no
//!   moment more.
//!
//! The device and the migration engine must not depend on each other, and two programs that want the same path
//! must agree on how a dead socket is replaced. The device and the guest's agent read the same key. So this lies beside
//! the types that they agree on. The crate `spec` itself has no I/O.
//!
//! | module | what it is |
//! |---|---|
//! | [`access`] | who may connect |
//! | [`file`](mod@file) | the name of a socket in the file system |
//! | `replace` | dead sockets give way |
//! | [`secret`] | a file that is kept from others |
#![forbid(unsafe_code)]

pub mod access;
pub mod file;
mod replace;
pub mod secret;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

pub use access::Access;
pub use file::SocketFile;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// The longest path of a unix socket in bytes: `sun_path` has 108, the last of them 0.
const LONGEST_PATH: usize = 107;

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program listens there.
    #[error("another program listens there: end it, or choose another path")]
    InUse,
    /// Something that is not a socket lies there.
    #[error("there is {0}, which is left as it is: move it away, or choose another path")]
    Occupied(&'static str),
    /// The path does not fit into a socket's address.
    #[error("the path has {0} bytes, and that of a unix socket may have {LONGEST_PATH}")]
    TooLong(usize),
    /// The path contains a zero byte, or is empty.
    #[error("this cannot be a socket's path: it is empty, or contains a zero byte")]
    NoPath,
    /// The socket cannot be given to the group.
    #[error(
        "the socket cannot be given to the group {group}: {source} (its owner must be a member)"
    )]
    Group {
        /// The group's number.
        group: u32,
        /// Why not.
        source: io::Error,
    },
    /// Another program does not finish replacing the dead socket.
    #[error("another program holds the lock {}: end it, or remove the file", .0.display())]
    Locked(PathBuf),
    /// Anything else that hinders it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for ListenError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<ListenError> for io::Error {
    fn from(error: ListenError) -> Self {
        let kind = match &error {
            ListenError::InUse => io::ErrorKind::AddrInUse,
            ListenError::Occupied(_) => io::ErrorKind::AlreadyExists,
            ListenError::TooLong(_) | ListenError::NoPath => io::ErrorKind::InvalidInput,
            ListenError::Group { source, .. } => source.kind(),
            ListenError::Locked(_) => io::ErrorKind::ResourceBusy,
            ListenError::Io(_) => {
                let ListenError::Io(error) = error else {
                    unreachable!("it was just seen")
                };
                return error;
            }
        };
        Self::new(kind, error)
    }
}

/// Listens at `path` for those whom `access` lets connect. A dead socket there is replaced, anything else is not.
///
/// The listener and the name of its file come apart: the file is to be removed before the listener is closed,
/// as then no other program takes the socket for a dead one in between.
///
/// # Errors
/// [`ListenError`]; then nothing has changed at `path`.
pub fn listen(path: &Path, access: Access) -> Result<(UnixListener, SocketFile), ListenError> {
    let address = address(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Linux gives the file the bits of the unbound socket, without those that the umask has. So it begins as
    // its owner's alone; the rest is added once the group is right.
    fchmod(&socket, access.mode & Mode::RWXU)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => replace::dead(path, &address, &socket)?,
        result => result?,
    }
    let (file, handle) = SocketFile::just_bound(path)?;
    match finish(&socket, &handle, access) {
        Ok(()) => Ok((UnixListener::from(socket), file)),
        Err(error) => {
            // The first error is the one to tell.
            let _ = file.remove();
            Err(error)
        }
    }
}

fn finish(socket: &OwnedFd, file: &OwnedFd, access: Access) -> Result<(), ListenError> {
    rustix::net::listen(socket, BACKLOG)?;
    if let Some(group) = access.group {
        file::set_group(file, group).map_err(|source| ListenError::Group {
            group: Gid::as_raw(group),
            source: source.into(),
        })?;
    }
    Ok(file::set_mode(file, access.mode)?)
}

fn address(path: &Path) -> Result<SocketAddrUnix, ListenError> {
    let length = path.as_os_str().len();
    match SocketAddrUnix::new(path) {
        Ok(_) if length > LONGEST_PATH => Err(ListenError::TooLong(length)),
        Err(Errno::NAMETOOLONG) => Err(ListenError::TooLong(length)),
        Ok(_) if length == 0 => Err(ListenError::NoPath),
        Ok(address) => Ok(address),
        Err(_) => Err(ListenError::NoPath),
    }
}
