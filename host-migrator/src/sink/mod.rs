// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sink: where pages go. The migration stream is one, a page store of this process ([`StoreSink`](store::StoreSink)) another, and a
//! snapshot file ([`FileSink`](file::FileSink)) the third.
//!
//! A VMM that wants a guest's pages somewhere else, such as in a file, implements [`Sink`] and gives it to
//! [`Migration::copy`](crate::Migration::copy).

pub(crate) mod carried;
pub(crate) mod channels;
pub mod file;
pub(crate) mod link;
pub(crate) mod pages_section;
mod queue;
pub mod store;
mod stream;

use std::io;
use std::time::Duration;

use spec::PageRange;
use spec::stream::Totals;

use crate::compression::Compression;
use crate::memory::error::RamError;
use crate::memory::page_buffer::PageBuffer;
use crate::snapshot::SnapshotError;
use crate::vm::state::{StateError, StateSection};
use crate::wire::SectionError;
pub use carried::Carried;

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

    /// As [`Sink::pages`]. The sink may take the buffer and leave an empty one.
    ///
    /// # Errors
    /// As [`Sink::pages`].
    fn take_pages(&mut self, pages: &mut PageBuffer) -> Result<(), SinkError> {
        self.pages(pages.runs(), pages.content())
    }

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

    /// Whether it gains from being told of pages that the guest has hinted after they were sent, as it takes less room then.
    fn wants_late_discards(&self) -> bool {
        false
    }

    /// A round of about `pages` begins. Everything that came before has taken effect.
    fn begin_round(&mut self, pages: u64) {
        let _ = pages;
    }

    /// Waits until everything that came has taken effect. Until then pages that come may not come again: only a sink with
    /// several channels needs that.
    ///
    /// # Errors
    /// [`SinkError`] if something has not taken effect.
    fn drain(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// How many channels it has that may overtake each other.
    fn channels(&self) -> u32 {
        1
    }

    /// Puts the bytes sent so far on each channel into `bytes`, which is empty, for a sink that has several.
    fn bytes_by_channel(&self, bytes: &mut Vec<u64>) {
        let _ = bytes;
    }

    /// Whether everything that came is known to have taken effect. Asked of a sink with several channels.
    fn is_drained(&self) -> bool {
        true
    }

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

    /// Bytes sent so far.
    fn bytes(&self) -> u64;

    /// The most bytes that follow them because they wait for a channel. How many these are is known when they are compressed.
    fn waiting_bytes(&self) -> u64 {
        0
    }

    /// How it compresses pages.
    fn compression(&self) -> Compression {
        Compression::None
    }

    /// The pages that are among [`Sink::bytes`], for a sink that compresses some.
    fn carried(&self) -> Carried {
        Carried::default()
    }

    /// The guest is about to be stopped. From now on everything until the guest runs again may take `limit`.
    fn begin_switchover(&mut self, limit: Duration) {
        let _ = limit;
    }

    /// Makes sure that the sink still takes something. Called often, also while nothing is sent.
    ///
    /// # Errors
    /// [`SinkError`] if it takes nothing any more.
    fn check(&mut self) -> Result<(), SinkError>;

    /// The guest of a copy runs on. What makes the copy last, and need not be waited for with the guest stopped, is done here.
    /// Called once, after [`Sink::commit`]; it may take its time.
    ///
    /// # Errors
    /// [`SinkError`] if the copy is lost.
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Each run of `runs` with its pages of `content`, which has the size of all of them.
fn by_run<'a>(
    runs: &'a [PageRange],
    mut content: &'a [u8],
) -> impl Iterator<Item = (PageRange, &'a [u8])> {
    runs.iter().map(move |run| {
        // All runs fit memory, so one does.
        let (of_run, rest) = content.split_at(run.bytes() as usize);
        content = rest;
        (*run, of_run)
    })
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
    /// A snapshot file cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The machine's state does not fit the sink.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something came after the end, or the end before the commit.
    #[error("the copy has ended, or has not been committed")]
    Finished,
    /// The other side gave up, disconnected, or broke the protocol.
    #[error(transparent)]
    Peer(#[from] SectionError),
    /// A channel failed.
    #[error("channel {channel}: {source}")]
    Channel {
        /// Its number, from 0.
        channel: u32,
        /// Why.
        source: SectionError,
    },
    /// The thread of a channel panicked.
    #[error("channel {channel} panicked: {text}")]
    ChannelPanicked {
        /// Its number, from 0.
        channel: u32,
        /// The panic's message.
        text: String,
    },
    /// A channel has failed before.
    #[error("a channel has failed before")]
    ChannelsEnded,
}
