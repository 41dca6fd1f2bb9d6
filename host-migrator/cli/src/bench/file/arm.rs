// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An arm of the file bench: one way to save or restore the content.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::BenchError;
use super::super::content::Content;
use super::super::record::Sample;
use super::{dd, engine, qemu};
use crate::args::FileArgs;
use crate::control::DirectIoName;

/// What all arms share.
pub(super) struct Bench {
    /// A folder on the disk that is measured.
    folder: PathBuf,
    /// What is saved.
    pub(super) content: Content,
}

/// One way to save or restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arm {
    /// dd writes memory to a file, without the page cache, in blocks of so many bytes.
    DdWrite(u64),
    /// A save by so many threads.
    Save(u16, DirectIoName),
    /// QEMU's save by so many threads.
    QemuSave(u16),
    /// dd reads a file into memory, without the page cache, in blocks of so many bytes.
    DdRead(u64),
    /// A restore by so many threads.
    Restore(u16, DirectIoName),
}

impl Bench {
    /// Files are made in `folder`.
    pub(super) fn new(folder: &Path, content: Content) -> Self {
        let folder = folder.to_owned();
        Self { folder, content }
    }

    /// The snapshot that restores read.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshot")
    }

    /// A name for a file. Nothing is there.
    pub(super) fn nothing(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(BenchError::io("cannot remove a file")(error))
            }
            _ => Ok(path),
        }
    }

    /// Makes a snapshot for restores, if there is none, and empties the page cache of it.
    pub(super) fn cold_snapshot(&self) -> Result<PathBuf, BenchError> {
        let path = self.snapshot();
        if !path.exists() {
            engine::save(self, &path, 2, DirectIoName::Auto)?;
        }
        let file = File::open(&path).map_err(BenchError::io("cannot open the snapshot"))?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|error| BenchError::io("cannot empty the page cache")(error.into()))?;
        Ok(path)
    }
}

impl Arm {
    /// All arms that `args` ask for, saves first.
    pub(super) fn all(args: &FileArgs) -> Vec<Self> {
        let blocks = || args.block_sizes.iter().map(|size| size.0);
        let ours = |arm: fn(u16, DirectIoName) -> Self| {
            let channels = args.channels.iter();
            channels.flat_map(move |count| args.direct_io.iter().map(move |way| arm(*count, *way)))
        };
        let mut arms: Vec<_> = blocks().map(Self::DdWrite).collect();
        arms.extend(ours(Self::Save));
        arms.extend(args.channels.iter().copied().map(Self::QemuSave));
        arms.extend(blocks().map(Self::DdRead));
        arms.extend(ours(Self::Restore));
        arms
    }

    /// Saves or restores all of the content once. With `checks` a save is read again and compared; a restore always is.
    ///
    /// # Errors
    /// [`BenchError`] if it cannot. Wrong pages are in the sample.
    pub(super) fn run(&self, bench: &Bench, checks: bool) -> Result<Sample, BenchError> {
        match *self {
            Self::DdWrite(block) => dd::write(bench, block),
            Self::Save(channels, direct_io) => {
                engine::measure_save(bench, channels, direct_io, checks)
            }
            Self::QemuSave(channels) => qemu::save(bench, channels),
            Self::DdRead(block) => dd::read(bench, block),
            Self::Restore(channels, direct_io) => engine::restore(bench, channels, direct_io),
        }
    }

    /// Whether it needs a program that this machine may not have.
    pub(super) fn may_be_missing(self) -> bool {
        matches!(self, Self::QemuSave(_))
    }
}
