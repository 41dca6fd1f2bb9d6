// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source that was accepted, while its channels join.

use std::time::{Duration, Instant};

use spec::stream::{Nonce, SectionKind};

use super::error::ReceiveError;
use super::introduction::{Incoming, random};
use super::joining::{Joined, Joining};
use crate::wire::{Heartbeats, SectionError};

/// How long all channels together may take to join.
const JOIN: Duration = Duration::from_secs(30);

/// A source that was accepted, whose channels are still joining.
pub(super) struct AcceptedSource {
    source: Incoming,
    nonce: Nonce,
    joined: Vec<Option<Joined>>,
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
                nonce,
                joined: (0..source.wanted).map(|_| None).collect(),
                until: Instant::now() + JOIN,
                source,
            }),
            Err(error) => {
                source.refuse(&error);
                Err(error)
            }
        }
    }

    /// Whether all channels have joined.
    pub(super) fn is_complete(&self) -> bool {
        self.joined.iter().all(Option::is_some)
    }

    /// Lets a channel join if it knows the session's secret. Otherwise it comes back, to be told why.
    pub(super) fn join(&mut self, joining: Joining) -> Option<(ReceiveError, Joining)> {
        let channels = self.joined.len();
        let error = match self.joined.get_mut(joining.channel as usize) {
            _ if joining.nonce != self.nonce => ReceiveError::Nonce,
            Some(place @ None) => {
                let mut joined = joining.joined;
                joined.input.set_stop(self.source.stop.clone());
                joined.out.set_stop(self.source.stop.clone());
                *place = Some(joined);
                return None;
            }
            Some(Some(_)) => ReceiveError::JoinedBefore(joining.channel),
            None => ReceiveError::NoSuchChannel {
                channel: joining.channel,
                channels,
            },
        };
        Some((error, joining))
    }

    /// An error if the source has gone, or its channels have taken too long.
    ///
    /// # Errors
    /// [`ReceiveError`]; the session is to be given up.
    pub(super) fn check(&mut self) -> Result<(), ReceiveError> {
        if Instant::now() >= self.until {
            return Err(self.missing());
        }
        Ok(self.source.input.check_peer()?)
    }

    /// Not all channels have come.
    pub(super) fn missing(&self) -> ReceiveError {
        ReceiveError::Missing {
            joined: self.joined.iter().flatten().count(),
            channels: self.joined.len(),
        }
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
        source.channels = self.joined.drain(..).flatten().collect();
        if source.channels.is_empty() {
            return Ok(());
        }
        let outs = source.channels.iter().map(|joined| joined.out.clone());
        let outs = outs.chain([source.out.clone()]).collect();
        source.heartbeats = Some(Heartbeats::start(outs).map_err(SectionError::from)?);
        let told = source.out.section(SectionKind::Joined, []);
        Ok(told.map_err(SectionError::from)?)
    }
}

/// Tells `source` that it is accepted, and begins to send it heartbeats. Returns the secret for its channels.
fn accept(source: &mut Incoming) -> Result<Nonce, ReceiveError> {
    let nonce = Nonce::new(random()?);
    let heartbeats = Heartbeats::start(vec![source.out.clone()]);
    source.heartbeats = Some(heartbeats.map_err(SectionError::from)?);
    let told = source.out.section(SectionKind::Accept, [&nonce.to_bytes()]);
    told.map_err(SectionError::from)?;
    Ok(nonce)
}
