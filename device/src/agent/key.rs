// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file with the key that the guest's agent has, too.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use spec::agent::proof::{Key, KeyLengthError};

/// Others may do nothing with the file, the group may at most read it: the service manager gives a service its
/// credentials with such a mode.
const FORBIDDEN_BITS: u32 = 0o027;

/// Why a file is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has no fixed content.
    #[error("it is not a regular file")]
    NotRegular,
    /// Whoever owns it knows it, or can replace it.
    #[error("it belongs to user {0}: make root or this program's user its owner")]
    Owner(u32),
    /// Others know it, or can replace it.
    #[error("its mode is {0:o}, which lets others at it: make it 600")]
    Mode(u32),
    /// Too short or too long.
    #[error("{0}: make one with `head -c 32 /dev/urandom`")]
    Length(#[from] KeyLengthError),
}

/// Reads the key in the file at `path`: all of its bytes.
///
/// # Errors
/// [`KeyFileError`] if it cannot be read, others than its owner can, or it is no key.
pub fn read(path: &Path) -> Result<Key, KeyFileError> {
    // Not blocking, should it be a pipe.
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotRegular);
    }
    if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
        return Err(KeyFileError::Owner(metadata.uid()));
    }
    if metadata.mode() & FORBIDDEN_BITS != 0 {
        return Err(KeyFileError::Mode(metadata.mode() & 0o777));
    }
    let mut bytes = Vec::new();
    // One byte more than a key has shows that the file is too long.
    file.by_ref()
        .take(Key::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(Key::new(&bytes)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_key_is_read_only_from_a_file_that_is_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(matches!(read(&path), Err(KeyFileError::Io(_))));
        fs::write(&path, [7; 32]).unwrap();
        for (mode, is_kept) in [
            (0o600, true),
            (0o400, true),
            (0o440, true),
            (0o644, false),
            (0o604, false),
            (0o660, false),
            (0o601, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match read(&path) {
                Ok(_) => assert!(is_kept, "{mode:o}"),
                Err(error) => assert!(
                    !is_kept && matches!(error, KeyFileError::Mode(_)),
                    "{mode:o}: {error}"
                ),
            }
        }
    }

    #[test]
    fn what_is_no_key_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for length in [0, 31, 4097] {
            fs::write(&path, vec![7; length]).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(read(&path), Err(KeyFileError::Length(_))));
        }
        assert!(matches!(read(folder.path()), Err(KeyFileError::NotRegular)));
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(read(&pipe), Err(KeyFileError::NotRegular)));
        assert!(matches!(
            read(Path::new("/dev/zero")),
            Err(KeyFileError::NotRegular)
        ));
    }
}
