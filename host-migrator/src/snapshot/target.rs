// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a snapshot is: `file:PATH` or `file:PATH,offset=N`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use spec::PAGE_SIZE;

/// The file of a snapshot.
///
/// ```
/// use host_migrator::snapshot::SnapshotTarget;
///
/// let target: SnapshotTarget = "file:guest.snapshot".parse()?;
/// assert_eq!(target.offset, None);
/// let inside: SnapshotTarget = "file:disk.img,offset=1G".parse()?;
/// assert_eq!((inside.path.to_str(), inside.offset), (Some("disk.img"), Some(1 << 30)));
/// # Ok::<(), host_migrator::snapshot::TargetError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTarget {
    /// The file.
    pub path: PathBuf,
    /// Where in the file the snapshot begins. If this is given, a save writes into the file that is there; otherwise it makes a
    /// new one, which replaces the old one when it is complete.
    pub offset: Option<u64>,
}

/// Text that does not say where a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// It does not begin with `file:`.
    #[error("'{0}' is not a file: write file:PATH or file:PATH,offset=N")]
    Scheme(String),
    /// There is no path.
    #[error("'{0}' has no path: write file:PATH or file:PATH,offset=N")]
    NoPath(String),
    /// The offset is not a number, or not aligned.
    #[error("the offset '{0}' is not a multiple of 4096 bytes (K, M, G and T are powers of 1024)")]
    Offset(String),
}

/// What an address of a file begins with.
const SCHEME: &str = "file:";

impl SnapshotTarget {
    /// Whether `text` is meant to be a file.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Where the snapshot begins in the file.
    pub(crate) fn base(&self) -> u64 {
        self.offset.unwrap_or(0)
    }
}

impl FromStr for SnapshotTarget {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| TargetError::Scheme(text.into()))?;
        let (path, offset) = match rest.rsplit_once(",offset=") {
            Some((path, offset)) => (path, Some(bytes(offset)?)),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(TargetError::NoPath(text.into()));
        }
        Ok(Self {
            path: path.into(),
            offset,
        })
    }
}

impl fmt::Display for SnapshotTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.path.display())?;
        match self.offset {
            Some(offset) => write!(f, ",offset={offset}"),
            None => Ok(()),
        }
    }
}

/// Reads an offset.
fn bytes(text: &str) -> Result<u64, TargetError> {
    let bad = || TargetError::Offset(text.into());
    let (digits, unit) = match text.char_indices().last() {
        Some((at, unit)) if !unit.is_ascii_digit() => (&text[..at], Some(unit)),
        _ => (text, None),
    };
    let shift = match unit {
        None => 0,
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        Some(_) => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let offset = number.checked_mul(1 << shift).ok_or_else(bad)?;
    // The kernel's offsets are signed, and a snapshot of the largest guest must fit behind this one.
    let fits = offset.is_multiple_of(PAGE_SIZE) && offset < 1 << 62;
    fits.then_some(offset).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        for text in [
            "file:a",
            "file:/x/y,z",
            "file:a,offset=0",
            "file:a,offset=4096",
        ] {
            let target: SnapshotTarget = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        let target: SnapshotTarget = "file:a,offset=12K".parse().unwrap();
        assert_eq!(target.offset, Some(12288));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |text: &str| text.parse::<SnapshotTarget>().unwrap_err();
        assert!(matches!(refused("tcp:a:1"), TargetError::Scheme(_)));
        for text in ["file:", "file:,offset=0"] {
            assert!(matches!(refused(text), TargetError::NoPath(_)), "{text}");
        }
        for offset in [
            "",
            "K",
            "1",
            "4095",
            "-4096",
            "4096B",
            "1.5M",
            "16777216T",
            "\u{e9}",
        ] {
            let refused = refused(&format!("file:a,offset={offset}"));
            assert!(matches!(refused, TargetError::Offset(_)), "{offset}");
        }
    }
}
