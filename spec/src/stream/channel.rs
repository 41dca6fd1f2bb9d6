// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first bytes of a channel: a connection that joins a session and carries pages besides its control connection.

use super::greeting::check_magic;
use super::{
    CHANNEL_MAGIC, MAX_CHANNELS, MAX_LANES, STREAM_HEADER_BYTES, StreamError, StreamHeader,
    check_seal,
};
use crate::wire;

/// The secret with which channels join a session: random, new for each session, sent with
/// [`SectionKind::Accept`](super::SectionKind::Accept). Only source and destination know it.
#[derive(Clone, Copy)]
pub struct Nonce([u8; Self::BYTES]);

impl Nonce {
    /// Bytes of it.
    pub const BYTES: usize = 16;

    /// The secret of these random bytes.
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads the payload of [`SectionKind::Accept`](super::SectionKind::Accept); `None` if it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes on the wire.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }
}

/// Takes as long for a guess that is nearly right as for any other.
impl PartialEq for Nonce {
    fn eq(&self, other: &Self) -> bool {
        let differ = (self.0.iter().zip(other.0)).fold(0, |differ, (ours, theirs)| {
            core::hint::black_box(differ | (ours ^ theirs))
        });
        differ == 0
    }
}

impl Eq for Nonce {}

/// Does not show the secret.
impl core::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// The first bytes of a channel from the source: `magic, version u32, channel u32, session u64, nonce [u8; 16],
/// zero ..60, crc u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelHeader {
    /// The number from the [`Greeting`](super::Greeting) on this connection.
    pub session: u64,
    /// The secret of the session that the channel joins.
    pub nonce: Nonce,
    /// The channel's number, from 0. Lanes follow the channels.
    pub channel: u32,
}

impl ChannelHeader {
    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; STREAM_HEADER_BYTES] {
        let mut bytes = [0; STREAM_HEADER_BYTES];
        wire::put(&mut bytes, 0, &CHANNEL_MAGIC);
        wire::put(&mut bytes, 8, &super::VERSION.to_le_bytes());
        wire::put(&mut bytes, 12, &self.channel.to_le_bytes());
        wire::put(&mut bytes, 16, &self.session.to_le_bytes());
        wire::put(&mut bytes, 24, &self.nonce.to_bytes());
        wire::seal(&mut bytes);
        bytes
    }

    /// Reads a channel's header.
    ///
    /// # Errors
    /// [`StreamError`] if the bytes are not a channel's header, have another version, or have an invalid field.
    pub fn from_bytes(bytes: &[u8; STREAM_HEADER_BYTES]) -> Result<Self, StreamError> {
        check_magic(bytes, CHANNEL_MAGIC)?;
        check_seal(bytes)?;
        let mut nonce = [0; Nonce::BYTES];
        nonce.copy_from_slice(&bytes[24..24 + Nonce::BYTES]);
        let header = Self {
            session: wire::u64_at(bytes, 16),
            nonce: Nonce(nonce),
            channel: wire::u32_at(bytes, 12),
        };
        if header.channel >= MAX_CHANNELS + MAX_LANES {
            return Err(StreamError::Field("channel"));
        }
        Ok(header)
    }
}

/// What a connection to the destination introduces itself as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Introduction {
    /// A source.
    Source(StreamHeader),
    /// A channel of a source that was accepted.
    Channel(ChannelHeader),
}

impl Introduction {
    /// Reads the first bytes from the source.
    ///
    /// # Errors
    /// [`StreamError`] if they are neither header, have another version, or have an invalid field.
    pub fn from_bytes(bytes: &[u8; STREAM_HEADER_BYTES]) -> Result<Self, StreamError> {
        if bytes[..8] == CHANNEL_MAGIC {
            ChannelHeader::from_bytes(bytes).map(Self::Channel)
        } else {
            StreamHeader::from_bytes(bytes).map(Self::Source)
        }
    }

    /// The number from the [`Greeting`](super::Greeting) that it repeats.
    pub const fn session(&self) -> u64 {
        match self {
            Self::Source(header) => header.session,
            Self::Channel(header) => header.session,
        }
    }
}
