// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of a migration to its destination: an address, or sockets that came with the command.

use std::os::fd::OwnedFd;
use std::time::Duration;

use host_migrator::Connection;
use host_migrator::wire::Address;

use crate::control::GIVEN;

/// How long a connection to the destination may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) enum Way {
    To(Address),
    Given(Vec<OwnedFd>),
}

impl Way {
    /// The way that `uri` and the `descriptors` beside it tell.
    ///
    /// # Errors
    /// A sentence, if they do not fit together.
    pub(super) fn new(uri: &str, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        match (uri, descriptors.is_empty()) {
            (GIVEN, false) => Ok(Self::Given(descriptors)),
            (GIVEN, true) => Err(format!(
                "no socket came with the command, as {GIVEN:?} says"
            )),
            (_, true) => (uri.parse().map(Self::To)).map_err(|error| format!("{error}")),
            (_, false) => Err(format!(
                "sockets came with the command, but not for {uri:?}"
            )),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn connect(self) -> Result<Connection, String> {
        match self {
            Self::To(address) => {
                Connection::connect(&address, CONNECT_TIMEOUT).map_err(|error| error.to_string())
            }
            Self::Given(sockets) => {
                let connections = sockets.into_iter().map(Connection::try_from);
                let connections: Result<Vec<_>, _> = connections.collect();
                let mut connections = connections
                    .map_err(|error| format!("a socket that came with the command: {error}"))?
                    .into_iter();
                let control = connections
                    .next()
                    .ok_or("no socket came with the command")?;
                Ok(control.with_more(connections))
            }
        }
    }
}
