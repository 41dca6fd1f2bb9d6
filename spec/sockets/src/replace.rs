// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Replaces a dead socket by a new one.
//!
//! This takes three steps: check that the socket is dead, remove it, and bind. If two programs did this at once, the
//! later one could remove the socket of the earlier. So the steps are taken under a lock: a file beside the socket,
//! which is removed at the end. (With a lock on the folder, anybody who may read the folder could block us. To bind
//! another name and rename it would hide the path from `ss`, `fuser` and systemd-tmpfiles.) A program that does not
//! know the lock can still bind in between; then it keeps its socket.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, flock, fstat, lstat, openat, unlink,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};

use crate::ListenError;
use crate::file::kind;

/// How long to wait for the lock. Its holder makes three system calls.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to try the lock.
const PAUSE: Duration = Duration::from_millis(2);
/// What the lock's name adds to the socket's.
const LOCK_SUFFIX: &str = ".lacuna-lock";

/// Binds `socket` to `path`, where a file lies, if that is a dead socket.
pub(crate) fn dead(
    path: &Path,
    address: &SocketAddrUnix,
    socket: &OwnedFd,
) -> Result<(), ListenError> {
    gives_way(path, address)?;
    let _lock = Lock::take(path)?;
    if gives_way(path, address)? {
        match unlink(path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match bind(socket, address) {
        Err(Errno::ADDRINUSE) => Err(ListenError::InUse),
        result => Ok(result?),
    }
}

/// Whether a dead socket is there. No file at all is fine, too; any other file is an error.
fn gives_way(path: &Path, address: &SocketAddrUnix) -> Result<bool, ListenError> {
    let what = match lstat(path) {
        Ok(found) => kind(&found),
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match what {
        FileType::Socket if is_dead(address)? => Ok(true),
        FileType::Socket => Err(ListenError::InUse),
        FileType::RegularFile => Err(ListenError::Occupied("a plain file")),
        FileType::Directory => Err(ListenError::Occupied("a folder")),
        FileType::Symlink => Err(ListenError::Occupied("a symbolic link")),
        _ => Err(ListenError::Occupied("a device or a pipe")),
    }
}

/// Whether no program has the socket any more. The kernel answers the connection of a datagram socket, which does not
/// fit, so the program behind the socket notices nothing. A socket that is bound but does not listen yet is not dead.
fn is_dead(address: &SocketAddrUnix) -> Result<bool, Errno> {
    let probe = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(error @ (Errno::ACCESS | Errno::PERM | Errno::NOMEM)) => Err(error),
        _ => Ok(false),
    }
}

/// The right to replace the file at a path.
struct Lock {
    path: PathBuf,
    _file: OwnedFd,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, ListenError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(LOCK_SUFFIX);
        let path = PathBuf::from(path);
        let end = Instant::now() + PATIENCE;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let file = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_named(&file, &path)? => return Ok(Self { path, _file: file }),
                // The program that had the lock has removed it.
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < end => thread::sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => return Err(ListenError::Locked(path)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether `path` still names `file`, and `file` is a lock and not somebody's data.
fn is_named(file: &OwnedFd, path: &Path) -> Result<bool, ListenError> {
    let ours = fstat(file)?;
    if kind(&ours) != FileType::RegularFile || ours.st_size != 0 {
        return Err(ListenError::Locked(path.to_owned()));
    }
    match lstat(path) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked, so it is still ours. If it cannot be removed, the next program uses it again.
        let _ = unlink(&self.path);
    }
}
