// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way between source and destination: addresses, connections, and the sections that travel on them.

mod address;
mod connection;
mod dial;
mod heartbeat;
mod listener;
pub(crate) mod sections;
mod stop;

pub use address::{Address, AddressError, LONGEST_SOCKET_PATH};
pub use connection::{Closer, Connection};
pub(crate) use connection::{Reader, Writer};
pub use dial::connect_unix;
pub(crate) use heartbeat::Heartbeats;
pub use listener::Listener;
pub use sections::SectionError;
pub use spec_sockets::Access;
pub(crate) use stop::StopFlag;

/// A connection that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {address}: {source}")]
pub struct TransportError {
    /// What was tried.
    pub action: &'static str,
    /// Where.
    pub address: Address,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}
