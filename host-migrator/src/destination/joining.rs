// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection that wants to join the session of a source, or has joined.

use spec::stream::Nonce;

use super::error::ReceiveError;
use super::refusal::refuse;
use crate::wire::Closer;
use crate::wire::sections::{SectionReader, SectionWriter};

/// A channel that wants to join a session.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) channel: u32,
    pub(super) nonce: Nonce,
    pub(super) joined: Joined,
}

/// The connection of a channel.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) input: SectionReader,
    pub(super) out: SectionWriter,
    pub(super) connection: Closer,
}

impl Joining {
    /// Tells the channel why it does not join.
    pub(super) fn refuse(mut self, error: &ReceiveError) {
        refuse(&mut self.joined.input, &mut self.joined.out, error);
    }
}
