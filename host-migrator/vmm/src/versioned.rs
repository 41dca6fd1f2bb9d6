// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes that one version of this program writes and another reads: a version, and a value in postcard's format. [`Format`] puts
//! a magic and the version in front of the value; the version of a [`Part`] is kept elsewhere.

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
        bytes.extend(self.part().write(value)?);
        Ok(bytes)
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
        self.part().read(u32::from_le_bytes(*version), body)
    }

    fn part(&self) -> Part {
        let Self { what, version, .. } = *self;
        Part { what, version }
    }
}

/// A kind of such bytes whose version is kept elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What the bytes are, as in "the state of the balloon is damaged".
    pub what: &'static str,
    /// The version that this program writes, and the only one that it reads.
    pub version: u32,
}

impl Part {
    /// `value` as bytes.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if it cannot be written in postcard's format. No known value causes this.
    pub fn write(&self, value: &impl Serialize) -> Result<Vec<u8>, FormatError> {
        postcard::to_allocvec(value).map_err(|source| self.damaged(source))
    }

    /// Reads what [`Part::write`] of version `found` wrote.
    ///
    /// # Errors
    /// [`FormatError`] for anything else.
    pub fn read<T: DeserializeOwned>(&self, found: u32, bytes: &[u8]) -> Result<T, FormatError> {
        let (what, known) = (self.what, self.version);
        if found != known {
            return Err(FormatError::Version { what, found, known });
        }
        let read = postcard::take_from_bytes(bytes);
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
