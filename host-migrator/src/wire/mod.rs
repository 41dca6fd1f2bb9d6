// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The path between source and destination: addresses, connections, and the sections that travel on them.

mod address;
mod connection;
mod descriptors;
mod dial;
mod error;
mod heartbeat;
mod listener;
mod reader;
mod redial;
pub(crate) mod sections;
mod stop;
mod tls;
mod wait;
mod writer;

pub use address::{Address, AddressError, LONGEST_SOCKET_PATH};
pub use connection::{Closer, Connection};
pub use dial::connect_unix;
pub use error::TransportError;
pub(crate) use heartbeat::Heartbeats;
pub use listener::Listener;
pub(crate) use redial::Redial;
pub use sections::SectionError;
pub use spec_sockets::Access;
pub(crate) use stop::StopFlag;
pub use tls::{Handshakes, TlsConfig, TlsError, TlsFileError, TlsFiles};
