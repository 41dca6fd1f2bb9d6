// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file with a secret, which is read only if it is kept from others.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;

/// Why a file is not accepted as a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has no fixed content.
    #[error("it is not a regular file")]
    NotRegular,
    /// Its owner knows it, or can replace it.
    #[error("it belongs to user {0}: make root or this program's user its owner")]
    Owner(u32),
    /// Others know it, or can replace it.
    #[error("its mode {0:o} lets others read or replace it: make it 600")]
    Mode(u32),
}

/// Who may read a secret besides its owner, who is root or the program's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Nobody.
    Owner,
    /// The group of the file, which may do nothing else with it. A service manager gives a service its credentials
    /// with such a mode.
    Group,
}

impl Readers {
    /// The bits that the file's mode must not have.
    fn forbidden(self) -> u32 {
        match self {
            Self::Owner => 0o077,
            Self::Group => 0o027,
        }
    }
}

/// Reads the secret in the file at `path`: all of its bytes, or the first `most` of them.
///
/// # Errors
/// [`SecretError`] if it cannot be read, or others than its owner and `readers` can.
pub fn read(path: &Path, readers: Readers, most: usize) -> Result<Vec<u8>, SecretError> {
    // Non-blocking, in case the file is a pipe.
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(SecretError::NotRegular);
    }
    if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
        return Err(SecretError::Owner(metadata.uid()));
    }
    if metadata.mode() & readers.forbidden() != 0 {
        return Err(SecretError::Mode(metadata.mode() & 0o777));
    }
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_secret_is_read_only_from_a_file_that_is_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, [7; 32]).unwrap();
        for (mode, of_owner, of_group) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o440, false, true),
            (0o640, false, true),
            (0o620, false, false),
            (0o660, false, false),
            (0o644, false, false),
            (0o604, false, false),
            (0o602, false, false),
            (0o601, false, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            for (readers, is_kept) in [(Readers::Owner, of_owner), (Readers::Group, of_group)] {
                match read(&path, readers, 100) {
                    Ok(bytes) => assert!(is_kept && bytes == [7; 32], "{mode:o}"),
                    Err(error) => assert!(
                        !is_kept && matches!(error, SecretError::Mode(_)),
                        "{mode:o}: {error}"
                    ),
                }
            }
        }
    }

    #[test]
    fn a_secret_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, [7; 32]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        if chown(&path, Some(12345), None).is_err() {
            spec_testing::skipped("only root can give a file away");
            return;
        }
        let error = read(&path, Readers::Owner, 100).unwrap_err();
        assert!(matches!(error, SecretError::Owner(12345)), "{error}");
    }

    #[test]
    fn at_most_the_requested_bytes_are_read_and_only_from_a_regular_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let read = |path: &Path| read(path, Readers::Owner, 100);
        assert!(matches!(read(&path), Err(SecretError::Io(_))));
        fs::write(&path, [7; 1000]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap(), [7; 100]);
        assert!(matches!(read(folder.path()), Err(SecretError::NotRegular)));
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(read(&pipe), Err(SecretError::NotRegular)));
        let endless = Path::new("/dev/zero");
        assert!(matches!(read(endless), Err(SecretError::NotRegular)));
    }
}
