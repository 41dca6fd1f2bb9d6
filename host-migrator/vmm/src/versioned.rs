// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes that one version of this program writes and another reads: a magic, a version, and a value in postcard's format.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A kind of such bytes.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// What the bytes are, as in "this is not the state of a machine".
    pub what: &'static str,
    /// What they begin with.
    pub magic: [u8; 8],
    /// The version that this program writes, and the only one that it reads.
    pub version: u32,
}

/// Bytes that are not of the format.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Something else.
    #[error("this is not {0}")]
    Magic(&'static str),
    /// Another version.
    #[error("{what} has version {found}; this program knows version {known}")]
    Version {
        /// What the bytes are.
        what: &'static str,
        /// The version in them.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// Cut off or damaged.
    #[error("{what} is damaged: {source}")]
    Damaged {
        /// What the bytes are.
        what: &'static str,
        /// Where reading failed.
        source: postcard::Error,
    },
    /// More bytes than there should be.
    #[error("{bytes} bytes follow {what}")]
    Trailing {
        /// What the bytes are.
        what: &'static str,
        /// How many follow.
        bytes: usize,
    },
}

impl Format {
    /// `value` as bytes.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if it cannot be written in postcard's format. No known value causes this.
    pub fn write(&self, value: &impl Serialize) -> Result<Vec<u8>, FormatError> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        postcard::to_extend(value, bytes).map_err(|source| self.damaged(source))
    }

    /// Reads what [`Format::write`] wrote.
    ///
    /// # Errors
    /// [`FormatError`] for anything else.
    pub fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, FormatError> {
        let what = self.what;
        let body = bytes.strip_prefix(&self.magic);
        let (version, body) = body
            .and_then(<[u8]>::split_first_chunk)
            .ok_or(FormatError::Magic(what))?;
        let (found, known) = (u32::from_le_bytes(*version), self.version);
        if found != known {
            return Err(FormatError::Version { what, found, known });
        }
        let read = postcard::take_from_bytes(body);
        let (value, rest) = read.map_err(|source| self.damaged(source))?;
        match rest.len() {
            0 => Ok(value),
            bytes => Err(FormatError::Trailing { what, bytes }),
        }
    }

    fn damaged(&self, source: postcard::Error) -> FormatError {
        let what = self.what;
        FormatError::Damaged { what, source }
    }
}
