// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sink: where pages go. The migration stream is one, a page store of this process ([`StoreSink`](store::StoreSink)) another.
//!
//! A VMM that wants a guest's pages somewhere else, such as in a file, implements [`Sink`] and gives it to
//! [`Migration::copy`](crate::Migration::copy).

pub(crate) mod link;
pub mod store;
mod stream;

use std::io;
use std::time::Duration;

use spec::PageRange;
use spec::stream::Totals;

use crate::memory::error::RamError;
use crate::vm::state::StateSection;
use crate::wire::SectionError;

/// Takes what a migration sends. Everything about a page takes effect in the order in which it came. Pages of which nothing
/// came are zero.
///
/// An error of any method ends the migration, and the guest runs on.
pub trait Sink {
    /// The content of the pages of `runs`, in their order.
    ///
    /// # Errors
    /// [`SinkError`] if the pages cannot be taken.
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError>;

    /// The pages of `runs` are zero.
    ///
    /// # Errors
    /// [`SinkError`] if that cannot be noted.
    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError>;

    /// The guest does not need the pages of `runs`: they must read as zero.
    ///
    /// # Errors
    /// [`SinkError`] if that cannot be noted.
    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError>;

    /// Round `round` ends here.
    ///
    /// # Errors
    /// [`SinkError`] if that cannot be noted.
    fn end_round(&mut self, round: u32) -> Result<(), SinkError>;

    /// Waits until everything before the last [`Sink::end_round`] has taken effect.
    ///
    /// # Errors
    /// [`SinkError`] if something has not taken effect.
    fn barrier(&mut self) -> Result<(), SinkError>;

    /// A section of the machine's state.
    ///
    /// # Errors
    /// [`SinkError`] if it cannot be taken.
    fn state(&mut self, section: &StateSection) -> Result<(), SinkError>;

    /// The whole guest was sent, with these `totals`. The sink adds the number of bytes.
    ///
    /// # Errors
    /// [`SinkError`] if not all has arrived.
    fn commit(&mut self, totals: Totals) -> Result<(), SinkError>;

    /// Bytes taken so far.
    fn bytes(&self) -> u64;

    /// The guest is about to be stopped. From now on everything until the guest runs again may take `limit`.
    fn begin_switchover(&mut self, limit: Duration) {
        let _ = limit;
    }

    /// Makes sure that the sink still takes something. Called often, also while nothing is sent.
    ///
    /// # Errors
    /// [`SinkError`] if it takes nothing any more.
    fn check(&mut self) -> Result<(), SinkError>;
}

/// A sink that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// Bytes cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Pages cannot be placed in memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The other side gave up, disconnected, or broke the protocol.
    #[error(transparent)]
    Peer(#[from] SectionError),
}
