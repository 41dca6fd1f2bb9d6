// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file with the key that the host's device also has. Whoever can read it in the guest can pose as the agent, so only
//! root may be able to read it.

use std::path::Path;

use spec::agent::proof::{Key, KeyLengthError};
use spec_sockets::secret::{self, Readers, SecretError};

/// Why the file is not accepted as a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read, or it is not kept from others.
    #[error(transparent)]
    File(#[from] SecretError),
    /// Too short or too long.
    #[error("{0}: make a key with `head -c 32 /dev/urandom`, and give the device the same")]
    Length(#[from] KeyLengthError),
}

/// Reads the key: all bytes of the file at `path`.
///
/// # Errors
/// [`KeyFileError`] if it cannot be read, if others than root have access to it, or if it is not a valid key.
pub fn read(path: &Path) -> Result<Key, KeyFileError> {
    // One byte more than a key has shows that the file is too long.
    let bytes = secret::read(path, Readers::Owner, Key::MAX_BYTES + 1)?;
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
        let error = read_with(0o440, 32).err();
        assert!(matches!(
            error,
            Some(KeyFileError::File(SecretError::Mode(0o440)))
        ));
        for length in [0, 31, 4097] {
            let error = read_with(0o600, length).err();
            assert!(matches!(error, Some(KeyFileError::Length(_))), "{length}");
        }
    }
}
