// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source that was accepted, while its channels join.

use std::time::{Duration, Instant};

use spec::stream::{Nonce, SectionKind};

use super::error::ReceiveError;
use super::introduction::{Incoming, random};
use super::joining::Joining;
use super::joins::{Joins, Session};
use crate::wire::{Heartbeats, SectionError};

/// How long all channels together may take to join.
const JOIN: Duration = Duration::from_secs(30);

/// A source that was accepted, whose channels and lanes are still joining.
pub(super) struct AcceptedSource {
    source: Incoming,
    joins: Joins,
    until: Instant,
}

impl AcceptedSource {
    /// Accepts `source`.
    ///
    /// # Errors
    /// [`ReceiveError`] if it cannot be told; it has been refused then.
    pub(super) fn accept(mut source: Incoming) -> Result<Self, ReceiveError> {
        match accept(&mut source) {
            Ok(nonce) => Ok(Self {
                joins: Joins::new(
                    nonce,
                    0,
                    (source.wanted + source.wanted_lanes) as usize,
                    source.stop.clone(),
                ),
                until: Instant::now() + JOIN,
                source,
            }),
            Err(error) => {
                source.refuse(&error);
                Err(error)
            }
        }
    }

    /// Not all channels have come.
    pub(super) fn missing(&self) -> ReceiveError {
        self.joins.missing()
    }

    /// The source with its channels, which are all there. It is told so.
    ///
    /// # Errors
    /// [`ReceiveError`] if it cannot be told; it has been refused then.
    pub(super) fn complete(mut self) -> Result<Incoming, ReceiveError> {
        match self.tell() {
            Ok(()) => Ok(self.source),
            Err(error) => {
                self.source.refuse(&error);
                Err(error)
            }
        }
    }

    /// Gives the session up.
    pub(super) fn refuse(mut self, error: &ReceiveError) {
        self.source.refuse(error);
    }

    fn tell(&mut self) -> Result<(), ReceiveError> {
        let source = &mut self.source;
        source.channels = self.joins.take();
        if source.channels.is_empty() {
            return Ok(());
        }
        let outs = source.channels.iter().map(|joined| joined.out.clone());
        let outs = outs.chain([source.out.clone()]).collect();
        source.heartbeats = Some(Heartbeats::start(outs).map_err(SectionError::from)?);
        source.lanes = source.channels.split_off(source.wanted as usize);
        let told = source.out.section(SectionKind::Joined, []);
        Ok(told.map_err(SectionError::from)?)
    }
}

impl Session for AcceptedSource {
    fn is_complete(&self) -> bool {
        self.joins.is_complete()
    }

    fn join(&mut self, joining: Joining) -> Option<(ReceiveError, Joining)> {
        self.joins.join(joining)
    }

    /// The source may have gone, or its channels have taken too long.
    fn check(&mut self) -> Result<(), ReceiveError> {
        if Instant::now() >= self.until {
            return Err(self.missing());
        }
        Ok(self.source.input.check_peer()?)
    }
}

/// Tells `source` that it is accepted, and begins to send it heartbeats. Returns the secret for its channels.
fn accept(source: &mut Incoming) -> Result<Nonce, ReceiveError> {
    let nonce = Nonce::new(random()?);
    source.nonce = Some(nonce);
    let heartbeats = Heartbeats::start(vec![source.out.clone()]);
    source.heartbeats = Some(heartbeats.map_err(SectionError::from)?);
    let told = source.out.section(SectionKind::Accept, [&nonce.to_bytes()]);
    told.map_err(SectionError::from)?;
    Ok(nonce)
}
