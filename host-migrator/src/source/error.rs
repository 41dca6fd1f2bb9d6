// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a migration failed.

use std::io;
use std::path::PathBuf;

use crate::memory::error::RamError;
use crate::sink::SinkError;
use crate::snapshot::SnapshotError;
use crate::vm::dirty_log::DirtyLogError;
use crate::vm::error::MachineError;
use crate::vm::state::StateError;
use crate::wire::SectionError;

/// A migration that did not complete. The record of ownership says who owns the guest. If that is
/// [`Owner::Here`](crate::Owner::Here), the guest runs on here, and may be migrated again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The operator cancelled it.
    #[error("the migration was cancelled")]
    Cancelled,
    /// The connection failed.
    #[error("connection to the destination: {0}")]
    Io(#[from] io::Error),
    /// The destination gave up, disconnected, or broke the protocol.
    #[error("destination: {0}")]
    Destination(#[from] SectionError),
    /// A channel failed.
    #[error("{0}")]
    Channel(#[source] SinkError),
    /// A channel could not join.
    #[error(
        "a channel cannot join: {0} (each channel needs a connection of its own; with multifd-channels 1 there is only one \
         connection)"
    )]
    Join(#[source] SinkError),
    /// The destination sends no secret with which channels could join.
    #[error("the destination takes no channels")]
    NoChannels,
    /// A dirty log failed.
    #[error(transparent)]
    DirtyLog(#[from] DirtyLogError),
    /// Guest memory cannot be read.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The machine cannot be stopped or saved.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A snapshot file cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The machine's state is too large or has a part twice.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine's description is larger than the stream allows.
    #[error("the machine's description of {0} bytes is too large for the stream")]
    DescriptionTooLarge(usize),
    /// Memory is to be lent over a connection that passes no file descriptors.
    #[error(
        "memory can be lent over a unix socket without TLS only: to a destination on another host its pages must be sent"
    )]
    NotLocal,
    /// The memory to be lent is a mapping without files.
    #[error("the guest's memory is not in memory files, so it cannot be lent")]
    NoMemoryFiles,
    /// The memory files cannot be duplicated.
    #[error("the guest's memory files cannot be lent: {0}")]
    MemoryFiles(#[source] io::Error),
    /// The guest does not belong to this side.
    #[error("this side does not own the guest, so there is nothing to migrate")]
    NotHere,
    /// The destination runs the guest without all of its memory, which was given up here.
    #[error("the guest runs at the destination, and the rest of its memory was given up here: {0}")]
    MemoryGivenUp(String),
    /// The destination runs the guest without all of its memory, and what it may lack was saved here.
    #[error(
        "the guest was handed over, and what the destination may lack of it was saved into {}: save the destination's half, too, \
         and use `lacuna reconcile`",
        .0.display()
    )]
    HalfSaved(PathBuf),
    /// A bug: the migration's thread panicked. The guest was put back as after any other error.
    #[error("a bug in the migration: {0}")]
    Panicked(String),
    /// The guest was handed over, and the destination did not confirm that it runs. Both sides keep it, stopped if
    /// the destination did not hear of it: an operator decides
    /// ([`OwnershipRecord::claim`](crate::OwnershipRecord::claim)).
    #[error(
        "the guest was handed over, but the destination did not confirm that it runs: {0}; \
         look there, then decide which side has the guest"
    )]
    HandedOverUnconfirmed(#[source] Box<MigrationError>),
}

impl From<SinkError> for MigrationError {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Io(error) => Self::Io(error),
            SinkError::Ram(error) => Self::Ram(error),
            SinkError::Peer(error) => Self::Destination(error),
            SinkError::Snapshot(error) => Self::Snapshot(error),
            SinkError::State(error) => Self::State(error),
            channel @ (SinkError::Finished
            | SinkError::Channel { .. }
            | SinkError::ChannelPanicked { .. }
            | SinkError::ChannelsEnded) => Self::Channel(channel),
        }
    }
}
