// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! TLS 1.3 on a connection, with certificates on both sides.
//!
//! [`TlsConfig`] holds the certificates. `handshake.rs` makes a [`Session`] of a socket. Both directions of the connection
//! share it, and lock it only while bytes are turned into bytes: [`Inbound`] decrypts and [`Outbound`] encrypts, and the
//! system calls are made outside.

mod buffer;
mod config;
mod counts;
mod error;
mod files;
mod handshake;
mod inbound;
mod outbound;
mod session;
#[cfg(test)]
mod tests;
mod tickets;

pub use config::TlsConfig;
pub use counts::Handshakes;
pub use error::TlsError;
pub(super) use error::is_tls_record;
pub use files::{TlsFileError, TlsFiles};
pub(super) use handshake::{Client, Directions, Server};
pub(super) use inbound::Inbound;
pub(super) use outbound::{Outbound, Parts};
