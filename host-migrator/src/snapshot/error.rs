// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a snapshot file cannot be written or read.

use std::fs::FileType;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use spec::file::{FormatError, Side};

use crate::memory::error::RamError;
use crate::vm::state::StateError;

/// A snapshot file that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system refused something.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another save writes the file, or somebody restores from it.
    #[error(
        "{path} is in use: another save writes it, or a guest is restored from it. Wait for the end of that, or choose \
         another name",
        path = .0.display()
    )]
    Busy(PathBuf),
    /// The name belongs to something else than a file.
    #[error("{path} is not a file that can hold a snapshot: it is neither a regular file nor a block device", path = .0.display())]
    NotAFile(PathBuf),
    /// The name belongs to something that has no places.
    #[error(
        "{path} is a {kind}: a snapshot has a fixed place for each page, so it needs a regular file or a block device. To send the \
         guest through a connection, give its address (unix:PATH or tcp:HOST:PORT)",
        path = .path.display()
    )]
    Unseekable {
        /// The name.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A file that is left from another user's save, or was put there.
    #[error(
        "{path} belongs to another user, who could read the guest's memory in it: remove it, or choose another name",
        path = .0.display()
    )]
    Foreign(PathBuf),
    /// The file system does no direct I/O.
    #[error("{path} cannot be written or read without the page cache (O_DIRECT): {why}", path = .path.display())]
    DirectIo {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The file's offset of a snapshot is not aligned.
    #[error("the offset {0} of a snapshot is not a multiple of 4096")]
    Offset(u64),
    /// The guest cannot be in a snapshot.
    #[error("a snapshot cannot hold this guest: {0}")]
    Guest(FormatError),
    /// The file is not a complete snapshot, or damaged.
    #[error("{path}: {source}", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// The file has only what one side of a migration has left.
    #[error(
        "{path} is not a whole guest: it is what the {side} of a migration has left. `lacuna reconcile` makes a snapshot of the \
         source's half and the destination's",
        path = .path.display()
    )]
    Half {
        /// The file.
        path: PathBuf,
        /// The side that saved it.
        side: Side,
    },
    /// A whole snapshot, where a half is needed.
    #[error(
        "{path} is a whole snapshot: nothing is missing in it, and `lacuna receive` restores it as it is",
        path = .0.display()
    )]
    Whole(PathBuf),
    /// The file ends too early.
    #[error("{path} ends in the middle of the {part}: it was not completed, or a part of it is lost", path = .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// In what.
        part: &'static str,
    },
    /// A page is damaged.
    #[error(
        "{path}: the page at {gpa:#x} of the guest's memory is damaged (it does not have its checksum)",
        path = .path.display()
    )]
    Page {
        /// The file.
        path: PathBuf,
        /// The page's guest-physical address.
        gpa: u64,
    },
    /// The number of pages is not that of the commit record.
    #[error("{path} has {found} pages, and its commit record says {expected}", path = .path.display())]
    Pages {
        /// The file.
        path: PathBuf,
        /// Pages that the bitmap has.
        found: u64,
        /// Pages that the commit record says.
        expected: u64,
    },
    /// The guest's memory lies elsewhere than the machine's.
    #[error(
        "{path} is of a guest with {snapshot} bytes of memory in {regions} regions, and this machine's memory is {machine} \
         bytes, or lies elsewhere",
        path = .path.display()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// Bytes of memory of the guest in the snapshot.
        snapshot: u64,
        /// Its regions.
        regions: usize,
        /// Bytes of memory of the machine.
        machine: u64,
    },
    /// A memory image is not as long as the memory.
    #[error(
        "{path} has {found} bytes, and an image of this memory has {expected}: it is of other memory, or not all of it is there",
        path = .path.display()
    )]
    ImageLength {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// Bytes of an image of the memory.
        expected: u64,
    },
    /// The machine's state in the file cannot be.
    #[error("{path}: {source}", path = .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
    /// The guest's memory cannot be filled.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A bug: a thread that reads or writes the file panicked.
    #[error("a bug: a thread that reads or writes a snapshot panicked: {0}")]
    Panicked(String),
}

impl SnapshotError {
    /// What is at `path` is of this `kind`, which cannot hold a snapshot.
    pub(crate) fn not_a_file(path: &Path, kind: FileType) -> Self {
        let kind = if kind.is_fifo() {
            "pipe"
        } else if kind.is_socket() {
            "socket"
        } else if kind.is_char_device() {
            "character device"
        } else {
            return Self::NotAFile(path.to_owned());
        };
        let path = path.to_owned();
        Self::Unseekable { path, kind }
    }

    /// `action` with the file at `path` has failed.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// The content of the file at `path` is wrong.
    pub(crate) fn format(path: &Path) -> impl FnOnce(FormatError) -> Self {
        move |source| Self::Format {
            path: path.to_owned(),
            source,
        }
    }
}
