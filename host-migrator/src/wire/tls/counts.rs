// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counts handshakes.

use std::sync::atomic::{AtomicU64, Ordering};

use rustls::HandshakeKind;

/// How many handshakes were completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handshakes {
    /// With certificates.
    pub full: u64,
    /// With a ticket of a full one, as those of channels.
    pub resumed: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    full: AtomicU64,
    resumed: AtomicU64,
}

impl Counts {
    pub(super) fn count(&self, kind: Option<HandshakeKind>) {
        let counter = match kind {
            Some(HandshakeKind::Resumed) => &self.resumed,
            _ => &self.full,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn handshakes(&self) -> Handshakes {
        Handshakes {
            full: self.full.load(Ordering::Relaxed),
            resumed: self.resumed.load(Ordering::Relaxed),
        }
    }
}
