// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The places of the connections that join a session.

use spec::stream::Nonce;

use super::error::ReceiveError;
use super::joining::{Joined, Joining};
use crate::wire::StopFlag;

/// A session that connections join.
pub(super) trait Session {
    /// Whether all have joined.
    fn is_complete(&self) -> bool;

    /// Lets one join if it knows the session's secret. Otherwise it comes back, to be told why.
    fn join(&mut self, joining: Joining) -> Option<(ReceiveError, Joining)>;

    /// An error if the session is to be given up.
    ///
    /// # Errors
    /// [`ReceiveError`] with the reason.
    fn check(&mut self) -> Result<(), ReceiveError>;
}

/// Places for connections with numbers that follow each other.
pub(super) struct Joins {
    nonce: Nonce,
    first: u32,
    places: Vec<Option<Joined>>,
    /// Ends the waits of all of them.
    stop: StopFlag,
}

impl Joins {
    /// `count` places, from number `first` on, for those that know `nonce`.
    pub(super) fn new(nonce: Nonce, first: u32, count: usize, stop: StopFlag) -> Self {
        Self {
            nonce,
            first,
            places: (0..count).map(|_| None).collect(),
            stop,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.places.iter().all(Option::is_some)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    /// As [`Session::join`].
    pub(super) fn join(&mut self, joining: Joining) -> Option<(ReceiveError, Joining)> {
        let place = joining.channel.checked_sub(self.first);
        let place = place.and_then(|place| self.places.get_mut(place as usize));
        let error = match place {
            _ if joining.nonce != self.nonce => ReceiveError::Nonce,
            Some(place @ None) => {
                let mut joined = joining.joined;
                joined.input.set_stop(self.stop.clone());
                joined.out.set_stop(self.stop.clone());
                *place = Some(joined);
                return None;
            }
            Some(Some(_)) => ReceiveError::JoinedBefore(joining.channel),
            None => ReceiveError::NoSuchChannel {
                channel: joining.channel,
                channels: self.places.len(),
            },
        };
        Some((error, joining))
    }

    /// Not all have come.
    pub(super) fn missing(&self) -> ReceiveError {
        ReceiveError::Missing {
            joined: self.places.iter().flatten().count(),
            channels: self.places.len(),
        }
    }

    /// Those that have joined, by their numbers.
    pub(super) fn take(&mut self) -> Vec<Joined> {
        self.places.drain(..).flatten().collect()
    }
}
