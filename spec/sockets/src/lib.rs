// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the programs of Lacuna listen on a path of the file system, take a socket that they were started with, and read a secret.
//!
//! All of them use [`listen`], which makes two promises:
//!
//! - **No file is lost.** Only a dead socket, on which no program listens, is replaced. A living socket, a plain file, a
//!   folder and a symbolic link stay as they are, and the caller gets an error that says so.
//! - **Only permitted clients connect.** The file has the rights of [`Access`] under any umask, and never more than
//!   these.
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
//! | [`inherited`] | sockets that the process was started with |
//! | [`rights`] | file descriptors that travel over a socket |
//! | [`secret`] | a file that must be kept from others |
#![deny(unsafe_code)]

pub mod access;
pub mod file;
pub mod inherited;
mod replace;
pub mod rights;
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
/// The longest path of a unix socket: `sun_path` has 108 bytes, the last of which is 0.
const LONGEST_PATH: usize = 107;

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program listens there.
    #[error("another program listens there: end it, or choose another path")]
    InUse,
    /// The path is a file that is not a socket.
    #[error("there is {0}, which is not replaced: move it away, or choose another path")]
    Occupied(&'static str),
    /// The path does not fit into a socket's address.
    #[error("the path has {0} bytes, and a unix socket's path has at most {LONGEST_PATH}")]
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
    /// Another program holds the lock for replacing the dead socket.
    #[error("another program holds the lock {}: end it, or remove the file", .0.display())]
    Locked(PathBuf),
    /// Any other error.
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

/// Listens at `path` for clients that `access` lets connect. A dead socket there is replaced, any other file is not.
///
/// Returns the listener and its file. Remove the file before the listener is closed: otherwise another program may
/// take the socket for a dead one in between.
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
    // Linux gives the file the bits of the unbound socket, without those of the umask. So only the owner may use it
    // at first; the other bits are added when the group is right.
    fchmod(&socket, access.mode & Mode::RWXU)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => replace::dead(path, &address, &socket)?,
        result => result?,
    }
    let (file, handle) = SocketFile::just_bound(path)?;
    match finish(&socket, &handle, access) {
        Ok(()) => Ok((UnixListener::from(socket), file)),
        Err(error) => {
            // Report the first error.
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
