// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to the destination.

use std::time::Duration;

use crate::transport::sections::{SectionReader, SectionWriter};

/// Both directions of the connection to the destination.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) out: SectionWriter,
    pub(crate) peer: SectionReader,
}

impl Link {
    /// How long the destination may neither take nor give a byte from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.out.set_patience(patience);
        self.peer.set_patience(patience);
    }
}
