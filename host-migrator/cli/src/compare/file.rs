// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run whose guest goes into a snapshot file and comes out of it again.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::CompareError;
use crate::args::{CompareArgs, ComparedTransport, RestoreKind};
use crate::control::CompressionName;

/// What a file has taken and given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct FileFigures {
    /// Its length, holes included.
    pub(super) bytes: u64,
    /// Bytes of the blocks that it takes on the disk.
    pub(super) allocated_bytes: u64,
    /// Milliseconds from the start of the destination's processes until the guest was there.
    pub(super) restore_ms: f64,
}

/// Whether the flags of `args` fit together.
pub(super) fn check(args: &CompareArgs) -> Result<(), CompareError> {
    match args.transport {
        ComparedTransport::File if args.tls => Err(CompareError::Flags(
            "a guest goes into a file without a connection: leave out --tls",
        )),
        ComparedTransport::File if args.migration.multifd_compression != CompressionName::None => {
            Err(CompareError::Flags(
                "a file is not compressed: leave out --multifd-compression",
            ))
        }
        ComparedTransport::Tcp | ComparedTransport::Unix | ComparedTransport::Local
            if args.file.is_some() =>
        {
            Err(CompareError::Flags("--file is for --transport file"))
        }
        ComparedTransport::Tcp | ComparedTransport::Unix | ComparedTransport::Local
            if args.restore == RestoreKind::Lazy =>
        {
            Err(CompareError::Flags(
                "--restore lazy is for --transport file",
            ))
        }
        _ if args.prefault.is_some() && args.restore == RestoreKind::Eager => {
            Err(CompareError::Flags("--prefault is for --restore lazy"))
        }
        _ => Ok(()),
    }
}

/// The snapshot file of a run whose own files are in `folder`, unless one was named.
pub(super) fn path(named: Option<&Path>, folder: &Path) -> Result<PathBuf, CompareError> {
    let path = named.map_or_else(|| folder.join("snapshot"), Path::to_owned);
    std::path::absolute(path).map_err(|source| CompareError::Io {
        what: "cannot find the current folder",
        source,
    })
}

/// The address of the file at `path`.
pub(super) fn uri(path: &Path) -> OsString {
    let mut uri = OsString::from("file:");
    uri.push(path);
    uri
}

/// The figures of the file at `path`, from which a guest was restored in `restore_ms` milliseconds.
pub(super) fn figures(path: &Path, restore_ms: f64) -> Result<FileFigures, CompareError> {
    let found = fs::metadata(path).map_err(|source| CompareError::Io {
        what: "cannot look at the snapshot file",
        source,
    })?;
    Ok(FileFigures {
        bytes: found.len(),
        allocated_bytes: found.blocks() * 512,
        restore_ms,
    })
}
