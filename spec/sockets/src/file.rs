// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The name that a socket has in the file system.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, chmod, chownat, fstat, lstat, openat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::ListenError;

/// A socket's file, known by its device and inode: another file that has taken its name is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The file that a bind has just made, and a handle of it that no change of names affects.
    pub(crate) fn just_bound(path: &Path) -> Result<(Self, OwnedFd), ListenError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = openat(CWD, path, flags, Mode::empty())?;
        let found = fstat(&handle)?;
        let ours = kind(&found) == FileType::Socket && found.st_uid == geteuid().as_raw();
        if !ours {
            // Somebody who may write the folder has exchanged it. Its rights are not ours to change.
            return Err(ListenError::InUse);
        }
        let file = Self {
            path: path.to_owned(),
            device: found.st_dev,
            inode: found.st_ino,
        };
        Ok((file, handle))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it. A file of another socket that has its name now stays, and it is no error if it is gone.
    ///
    /// # Errors
    /// Whatever hinders the removal.
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

/// What a file is.
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
    // The kernel's own link to the open file: the name in the folder may be another's by now.
    chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
}
