// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of a migration to its destination: an address, or sockets that came with the command.

use std::os::fd::OwnedFd;
use std::time::Duration;

use host_migrator::Connection;
use host_migrator::wire::{Address, TlsConfig};

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

    /// Connects, with TLS if there are certificates for it.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn connect(self, tls: Option<&TlsConfig>) -> Result<Connection, String> {
        match self {
            Self::To(address) => match tls {
                Some(tls) => Connection::connect_tls(&address, CONNECT_TIMEOUT, tls),
                None => Connection::connect(&address, CONNECT_TIMEOUT),
            }
            .map_err(|error| error.to_string()),
            Self::Given(sockets) => Connection::of_sockets(sockets)
                .and_then(|connection| match tls {
                    Some(tls) => connection.with_patience(CONNECT_TIMEOUT).with_tls(tls),
                    None => Ok(connection),
                })
                .map_err(|error| format!("a socket that came with the command: {error}")),
        }
    }
}
