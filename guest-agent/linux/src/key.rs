// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file with the key that the host's device has, too. Whoever reads it in the guest can pass for the agent, so that
//! only root may.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use spec::agent::proof::{Key, KeyLengthError};

/// Why a file is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has no fixed content.
    #[error("it is not a regular file")]
    NotRegular,
    /// Whoever owns it knows it.
    #[error("it belongs to user {0}: make root its owner")]
    Owner(u32),
    /// Others know it.
    #[error("its mode is {0:o}, which lets others at it: make it 600")]
    Mode(u32),
    /// Too short or too long.
    #[error("{0}: make one with `head -c 32 /dev/urandom`, and give it to the device, too")]
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
    if metadata.mode() & 0o077 != 0 {
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

    use super::*;

    #[test]
    fn a_key_is_read_only_from_a_file_that_nobody_else_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read_with = |mode, length| {
            let _ = fs::remove_file(&path);
            fs::write(&path, vec![7; length]).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        assert!(read_with(0o600, 32).is_ok());
        assert!(read_with(0o400, 4096).is_ok());
        for mode in [0o640, 0o604, 0o620] {
            assert!(matches!(read_with(mode, 32), Err(KeyFileError::Mode(_))));
        }
        for length in [0, 31, 4097] {
            assert!(matches!(
                read_with(0o600, length),
                Err(KeyFileError::Length(_))
            ));
        }
        assert!(matches!(read(folder.path()), Err(KeyFileError::NotRegular)));
        assert!(matches!(
            read(Path::new("/dev/zero")),
            Err(KeyFileError::NotRegular)
        ));
    }
}
