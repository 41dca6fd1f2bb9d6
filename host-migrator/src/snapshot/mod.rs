// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Snapshot files (`spec/file-format.md`): how one is written so that nothing can spoil it, and how one is read.
//!
//! [`SnapshotWriter`] has threads of its own that write pages. It writes to a [`Storage`]: a new file that replaces the old one when it is complete
//! ([`PartialFile`]), or a place inside a file that exists ([`InPlace`]). [`Snapshot`] is a complete file that was opened.

mod checksums;
mod data_file;
mod direct;
mod error;
mod file;
mod half;
mod in_place;
mod load;
mod pager;
mod partial;
mod raw;
mod reader;
mod reconcile;
mod reserved;
mod saved_half;
mod slots;
mod storage;
mod target;
mod writer;
mod writers;

pub use direct::DirectIo;
pub use error::SnapshotError;
pub use half::HalfFile;
pub use in_place::InPlace;
pub use load::{Damage, Verified};
pub use partial::PartialFile;
pub use raw::{RawImage, RawLayout, RawSource};
pub use reader::Snapshot;
pub use reconcile::{ReconcileError, Reconciled, reconcile};
pub(crate) use reconcile::{check_all_is_there, check_match};
pub(crate) use saved_half::SavedHalf;
pub use spec::file::{Half, Side};
pub use storage::Storage;
pub use target::{SnapshotTarget, TargetError};
pub use writer::{Saved, SnapshotWriter};

/// Opens `target` to be written, its pages with `direct_io` or without.
///
/// # Errors
/// [`SnapshotError`] if it cannot be opened, is in use, is not a file, or its file system refuses what is wanted.
pub fn open_storage(
    target: &SnapshotTarget,
    direct_io: DirectIo,
) -> Result<Box<dyn Storage>, SnapshotError> {
    let path = &target.path;
    Ok(match target.offset {
        None => Box::new(PartialFile::create(path, direct_io)?),
        Some(offset) => Box::new(InPlace::open(path, offset, direct_io)?),
    })
}
