// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a guest was not received.

use spec::stream::Totals;

use crate::compression::UnpackError;
use crate::memory::error::RamError;
use crate::memory::lent::LentError;
use crate::paging::PagingError;
use crate::snapshot::{ReconcileError, SnapshotError};
use crate::vm::error::MachineError;
use crate::vm::state::StateError;
use crate::wire::SectionError;

/// A guest that could not be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The stream broke off or is not what it should be.
    #[error("source: {0}")]
    Stream(#[from] SectionError),
    /// The stream was made for another session: a recorded one, or a mix-up.
    #[error(
        "the stream belongs to another session: it was recorded, or meant for another destination"
    )]
    Session,
    /// A channel does not know the secret of the session.
    #[error(
        "a channel does not know the session's secret: it belongs to another migration, or to nobody"
    )]
    Nonce,
    /// A channel came while no source is waiting for its channels.
    #[error("no migration waits for a channel here")]
    NoSession,
    /// A source came while another one's guest is being received.
    #[error("another guest is being received here")]
    Busy,
    /// Two channels have the same number.
    #[error("channel {0} has joined before")]
    JoinedBefore(u32),
    /// A channel has a number that the session does not have.
    #[error("channel {channel} is none of the {channels} channels of this migration")]
    NoSuchChannel {
        /// The channel's number, from 0.
        channel: u32,
        /// How many channels there are.
        channels: usize,
    },
    /// Channels did not come.
    #[error("only {joined} of {channels} channels have joined")]
    Missing {
        /// Channels that have joined.
        joined: usize,
        /// Channels that the source wanted.
        channels: usize,
    },
    /// All connections that this process was started with have ended.
    #[error("no source came over the connections that this process was started with")]
    NoneLeft,
    /// A channel failed.
    #[error("channel {channel}: {source}")]
    Channel {
        /// Its number, from 0.
        channel: usize,
        /// Why.
        source: Box<ReceiveError>,
    },
    /// The source's guest has other memory.
    #[error("the source's guest has other memory than the one here: {0}")]
    Layout(String),
    /// A source lends its memory over a connection that passes no file descriptors, such as TCP.
    #[error("memory can be lent over a unix socket without TLS only")]
    NotLocal,
    /// The memory that the source lends cannot be used.
    #[error("the source's memory cannot be used: {0}")]
    Lent(#[from] LentError),
    /// The guest needs another machine than the one here.
    #[error(transparent)]
    Unfit(MachineError),
    /// A section belongs to another round than the one that runs.
    #[error("a section of round {found} arrived in round {expected}")]
    Round {
        /// The round that runs.
        expected: u32,
        /// The section's.
        found: u32,
    },
    /// Not everything that was sent has arrived.
    #[error("the source sent {sent:?}, received were {received:?}")]
    Totals {
        /// What the source counted.
        sent: Totals,
        /// What arrived.
        received: Totals,
    },
    /// Pages outside guest memory, or memory that cannot be written.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A section whose pages cannot be decompressed.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The machine's state does not fit.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A section of the machine's state that cannot be, or that the machine does not know.
    #[error(transparent)]
    State(#[from] StateError),
    /// No random number for the session.
    #[error("no random number to be had: {0}")]
    Random(#[source] std::io::Error),
    /// The source has given the guest up, and it cannot run here. It is this side's, and kept.
    #[error("the guest was handed over, and cannot run here; it is kept: {0}")]
    Run(#[source] MachineError),
    /// The link died when all had arrived. Nobody knows whether the source has given the guest up: it is kept here,
    /// stopped, until an operator decides ([`OwnershipRecord::claim`](crate::OwnershipRecord::claim)).
    #[error(
        "the guest is here and stands still, but whether the source has given it up is not known: {0}"
    )]
    Undecided(#[source] Box<ReceiveError>),
    /// The source hands the guest over before its memory, and this destination does not do that.
    #[error(
        "this destination needs all of the guest's memory before it runs the guest (no postcopy)"
    )]
    NoPostcopy,
    /// Pages cannot be brought while the guest runs.
    #[error(transparent)]
    Paging(#[from] PagingError),
    /// There is nothing to recover, and no half to save: the connection has not broken, or all memory is here.
    #[error("nothing is to be recovered: {0}")]
    NotPaused(&'static str),
    /// The half of a guest cannot be saved.
    #[error(transparent)]
    Half(#[from] SnapshotError),
    /// The file is not the half of the source that has handed this guest over, or lacks pages that are missing here.
    #[error(transparent)]
    OtherHalf(#[from] ReconcileError),
    /// A page of that file cannot be had.
    #[error("{0}")]
    File(String),
    /// Nobody waits any more.
    #[error("the wait for the source was ended")]
    Ended,
    /// A bug: the thread that received the guest panicked.
    #[error("a bug in the destination: {0}")]
    Panicked(String),
}
