// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file of a socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, chmod, chownat, fstat, lstat, openat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::ListenError;

/// A socket's file. It is identified by device and inode, so another file with its name is not mistaken for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The file that a bind has just made, and a handle that stays valid when the file is renamed.
    pub(crate) fn just_bound(path: &Path) -> Result<(Self, OwnedFd), ListenError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = openat(CWD, path, flags, Mode::empty())?;
        let found = fstat(&handle)?;
        let ours = kind(&found) == FileType::Socket && found.st_uid == geteuid().as_raw();
        if !ours {
            // Somebody has replaced the file. Do not change the rights of the new one.
            return Err(ListenError::InUse);
        }
        let file = Self {
            path: path.to_owned(),
            device: found.st_dev,
            inode: found.st_ino,
        };
        Ok((file, handle))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file. The file of another socket with the same name stays. It is not an error if the file is gone.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        let removed = match lstat(&self.path) {
            Ok(found) if (found.st_dev, found.st_ino) == (self.device, self.inode) => {
                rustix::fs::unlink(&self.path)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Err(Errno::NOENT) => Ok(()),
            result => Ok(result?),
        }
    }
}

/// The kind of a file.
pub(crate) fn kind(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

pub(crate) fn set_group(file: impl AsFd, group: Gid) -> Result<(), Errno> {
    chownat(file, "", None, Some(group), AtFlags::EMPTY_PATH)
}

/// Gives the file of an `O_PATH` handle exactly these permission bits.
pub(crate) fn set_mode(file: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    if Mode::from_raw_mode(fstat(file)?.st_mode) & Mode::from_raw_mode(0o777) == mode {
        return Ok(());
    }
    // Through the kernel's link to the open file, because its name may belong to another file by now.
    chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
}
