// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sink: where pages go.

pub(crate) mod link;
mod stream;

use std::io;

use spec::PageRange;
use spec::stream::Totals;

use crate::wire::SectionError;

/// Takes what a migration sends. Everything takes effect in the order in which it came.
pub(crate) trait Sink {
    /// The content of the pages of `runs`, in their order.
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError>;

    /// The pages of `runs` are zero.
    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError>;

    /// The guest does not need the pages of `runs`: they must read as zero.
    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError>;

    /// Round `round` ends here.
    fn end_round(&mut self, round: u32) -> Result<(), SinkError>;

    /// Waits until everything before the last [`Sink::end_round`] has taken effect.
    fn barrier(&mut self) -> Result<(), SinkError>;

    /// The machine's state.
    fn state(&mut self, state: &[u8]) -> Result<(), SinkError>;

    /// The whole guest was sent, with these `totals`. The sink adds the number of bytes.
    fn commit(&mut self, totals: Totals) -> Result<(), SinkError>;

    /// Bytes taken so far.
    fn bytes(&self) -> u64;

    /// Returns an error if the sink takes nothing any more.
    fn check(&mut self) -> Result<(), SinkError>;
}

/// A sink that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    /// Bytes cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side gave up, disconnected, or broke the protocol.
    #[error(transparent)]
    Peer(#[from] SectionError),
}
