// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot that replaces the file of its name when it is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::data_file::DataFile;
use super::direct::DirectIo;
use super::error::SnapshotError;
use super::file::{lock, punch, read};
use super::storage::Storage;

/// Only the user of the process may read a guest's memory.
const MODE: u32 = 0o600;
/// How often the saver begins again because the file was renamed or removed between its opening and its locking.
const TRIES: u32 = 100;

/// A file that is called `PATH.partial` while it is written, and `PATH` when it is complete.
#[derive(Debug)]
pub struct PartialFile {
    file: DataFile,
    path: PathBuf,
    partial: PathBuf,
    /// The folder of both names.
    folder: File,
    published: AtomicBool,
}

impl PartialFile {
    /// Opens, locks and empties `path.partial`.
    ///
    /// # Errors
    /// [`SnapshotError`] if another save writes it, or it cannot be made; if `path` cannot be replaced, as it is no file; or if the
    /// file system refuses `direct_io`.
    pub fn create(path: &Path, direct_io: DirectIo) -> Result<Self, SnapshotError> {
        // Seen now, and not after all memory was written.
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(SnapshotError::not_a_file(path, found.file_type()));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SnapshotError::io("look at", path)(error));
            }
            _ => {}
        }
        let mut name = path
            .file_name()
            .map(OsString::from)
            .ok_or_else(|| SnapshotError::NotAFile(path.to_owned()))?;
        name.push(".partial");
        let partial = path.with_file_name(name);
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = File::open(parent).map_err(SnapshotError::io("open", parent))?;
        let file = open_and_lock(&partial)?;
        let file = DataFile::new(file, &partial, direct_io).inspect_err(|_| remove(&partial))?;
        let made = Self {
            file,
            path: path.to_owned(),
            partial,
            folder,
            published: AtomicBool::new(false),
        };
        // Of a save that was killed.
        let empty = made.file.file().set_len(0);
        empty.map_err(SnapshotError::io("empty", &made.partial))?;
        Ok(made)
    }
}

impl Storage for PartialFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn is_in_place(&self) -> bool {
        false
    }

    fn expect(&self, length: u64) -> io::Result<()> {
        self.file.file().set_len(length)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.file().write_all_at(bytes, at)
    }

    fn write_pages(&self, content: &[u8], at: u64) -> io::Result<()> {
        self.file.write_pages(content, at, &self.partial)
    }

    fn reserve(&self, at: u64, length: u64, spare: u64) -> bool {
        self.file.reserve(at, length, spare)
    }

    fn expect_rewrites(&self) {
        self.file.expect_rewrites();
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        read(self.file.file(), bytes, at)
    }

    fn give_back(&self, at: u64, length: u64) -> io::Result<()> {
        punch(self.file.file(), at, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.file().sync_all()
    }

    fn publish(&self) -> io::Result<()> {
        fs::rename(&self.partial, &self.path)?;
        self.published.store(true, Ordering::Relaxed);
        self.folder.sync_all()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // The lock is still held, so the name means this file.
        if !*self.published.get_mut() {
            remove(&self.partial);
        }
    }
}

fn remove(partial: &Path) {
    if let Err(error) = fs::remove_file(partial) {
        log::warn!("cannot remove {}: {error}", partial.display());
    }
}

/// Opens the file at `path`, or makes it, and locks it.
fn open_and_lock(path: &Path) -> Result<File, SnapshotError> {
    for _ in 0..TRIES {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(MODE));
        let file = File::from(file.map_err(|error| SnapshotError::io("make", path)(error.into()))?);
        let look = SnapshotError::io("look at", path);
        let found = file.metadata().map_err(look)?;
        if !found.is_file() {
            return Err(SnapshotError::NotAFile(path.to_owned()));
        }
        // Whoever else has put it there could read all that is written to it.
        if found.uid() != rustix::process::geteuid().as_raw() || found.nlink() > 1 {
            return Err(SnapshotError::Foreign(path.to_owned()));
        }
        lock(&file, FlockOperation::NonBlockingLockExclusive, path)?;
        // The save that had it locked may have completed: then this is its snapshot.
        let is_still_there = fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (found.dev(), found.ino()));
        if !is_still_there {
            continue;
        }
        let private = fs::Permissions::from_mode(MODE);
        file.set_permissions(private)
            .map_err(SnapshotError::io("protect", path))?;
        return Ok(file);
    }
    Err(SnapshotError::Busy(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_save_of_a_file_is_refused_until_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest");
        let first = PartialFile::create(&path, DirectIo::Off).unwrap();
        let refused = PartialFile::create(&path, DirectIo::Off).unwrap_err();
        assert!(matches!(refused, SnapshotError::Busy(_)), "{refused}");
        assert!(refused.to_string().contains("guest.partial"), "{refused}");
        drop(first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let second = PartialFile::create(&path, DirectIo::Off).unwrap();
        second.write(b"whole", 0).unwrap();
        second.publish().unwrap();
        // Its lock is that of the complete file now, and does not keep another save from beginning.
        let third = PartialFile::create(&path, DirectIo::Off).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        drop((second, third));
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_save_has_left_is_emptied_and_only_its_user_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest");
        let left = folder.path().join("guest.partial");
        fs::write(&left, [1; 10_000]).unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o666)).unwrap();
        let file = PartialFile::create(&path, DirectIo::Off).unwrap();
        let found = fs::metadata(&left).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (0, MODE));
        file.publish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
    }

    #[test]
    fn what_cannot_become_a_snapshot_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::create_dir(at("a.partial")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("b.partial")).unwrap();
        fs::write(at("c.partial"), b"mine").unwrap();
        fs::hard_link(at("c.partial"), at("another name")).unwrap();
        let pipe = Mode::from_raw_mode(0o600);
        for name in ["pipe", "d.partial"] {
            rustix::fs::mkfifoat(rustix::fs::CWD, at(name), pipe).unwrap();
        }
        for name in ["folder", "link", "pipe", "a", "b", "c", "d", "none/x", ".."] {
            let made = PartialFile::create(&at(name), DirectIo::Off);
            assert!(made.is_err(), "{name}: {made:?}");
        }
        let pipe = PartialFile::create(&at("pipe"), DirectIo::Off).unwrap_err();
        assert!(
            pipe.to_string().contains("is a pipe") && pipe.to_string().contains("unix:PATH"),
            "{pipe}"
        );
        assert!(!at("elsewhere").exists());
        assert_eq!(fs::read(at("another name")).unwrap(), b"mine");
    }
}
