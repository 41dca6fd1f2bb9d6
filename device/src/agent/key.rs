// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file with the key that the guest's agent has, too.

use std::path::Path;

use spec::agent::proof::{Key, KeyLengthError};
use spec_sockets::secret::{self, Readers, SecretError};

/// Why a file is not accepted as a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read, or it is not kept from others.
    #[error(transparent)]
    File(#[from] SecretError),
    /// Too short or too long.
    #[error("{0}: make one with `head -c 32 /dev/urandom`")]
    Length(#[from] KeyLengthError),
}

/// Reads the key in the file at `path`: all of its bytes.
///
/// # Errors
/// [`KeyFileError`] if it cannot be read, if others than its owner and its group have access, or if it is not a key.
pub fn read(path: &Path) -> Result<Key, KeyFileError> {
    // One byte more than a key has shows that the file is too long.
    let bytes = secret::read(path, Readers::Group, Key::MAX_BYTES + 1)?;
    Ok(Key::new(&bytes)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_read_from_a_file_that_only_owner_and_group_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read_with = |mode, length| {
            let _ = fs::remove_file(&path);
            fs::write(&path, vec![7; length]).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        assert!(read_with(0o600, 32).is_ok());
        assert!(read_with(0o440, 4096).is_ok());
        let error = read_with(0o604, 32).err();
        assert!(matches!(
            error,
            Some(KeyFileError::File(SecretError::Mode(0o604)))
        ));
        for length in [0, 31, 4097] {
            let error = read_with(0o600, length).err();
            assert!(matches!(error, Some(KeyFileError::Length(_))), "{length}");
        }
    }
}
