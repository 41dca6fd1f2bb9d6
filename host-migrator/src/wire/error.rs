// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a connection cannot be made.

use super::address::Address;

/// A connection that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {address}: {source}")]
#[non_exhaustive]
pub struct TransportError {
    /// What was attempted.
    pub action: &'static str,
    /// Where.
    pub address: Address,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}
