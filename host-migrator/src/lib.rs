// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Live migration that skips the memory the guest does not use.
//!
//! A VMM gives the engine its guest memory ([`GuestMemory`]), its dirty logs ([`DirtyLog`]), a source of
//! free page hints ([`HintSource`]), a way to stop and save the machine ([`SourceMachine`]) and a
//! connection ([`Connection`]). `spec/free-page-hinting.md` has the rule that makes skipping safe;
//! `ARCHITECTURE.md` follows a page and a hand-over through this crate.
#![deny(unsafe_code)]

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod compression;
pub mod convergence;
pub mod destination;
pub mod dirty_rate;
pub mod hints;
pub mod memory;
pub mod ownership;
mod pace;
pub mod paging;
mod panics;
pub mod report;
pub mod rule;
pub mod sink;
pub mod snapshot;
pub mod source;
pub mod vm;
pub mod walk;
pub mod wire;

pub use compression::{Compression, ZstdLevel};
pub use convergence::background_sync::SYNC_INTERVAL;
pub use convergence::controller::Goals;
pub use convergence::throttle::{ThrottleParamError, ThrottleParams};
pub use destination::{
    Incoming, ReceiveError, ReceiveReport, ReceiveState, ReceiveStatus, receive,
};
pub use hints::{ControlClient, DeviceHints};
pub use memory::bitmap::MigrationBitmap;
pub use memory::error::RamError;
pub use memory::guest_memory::GuestMemory;
pub use memory::holes::HoleBudget;
pub use memory::layout::Layout;
pub use memory::lent::{LentError, Unfit};
pub use memory::page_buffer::PageBuffer;
pub use memory::page_store::PageStore;
pub use memory::ram::GuestRam;
pub use memory::ram_region::RamRegion;
pub use ownership::{ClaimError, Owner, Ownership, OwnershipRecord, Session};
pub use report::events::{MigrationEvent, TimedEvent};
pub use report::page_source::{PageSource, PageSources, PagesBySource};
pub use report::round_map::RoundMaps;
pub use report::stats::{
    LentMemory, MigrationReport, MigrationState, MigrationStatus, PostcopyReport,
};
pub use report::trace::Trace;
pub use rule::clause::Clause;
pub use sink::file::FileSink;
pub use sink::store::StoreSink;
pub use sink::{Carried, Sink, SinkError};
pub use snapshot::{DirectIo, Snapshot, SnapshotError, SnapshotTarget};
pub use source::clock::Clock;
pub use source::params::{
    BESIDES_MEMORY, EARLY_HARVESTS, MigrationParams, PostcopyStart, STOP_AND_SAVE, Tuning,
};
pub use source::{GuestCopy, Migration, MigrationError, MigrationHandle, MigrationMonitor, Source};
pub use spec::stream::{MAX_CHANNELS, Totals};
pub use spec::{PAGE_SIZE, PageRange};
pub use vm::dirty_log::{DirtyLog, DirtyLogError, LogSource};
pub use vm::error::MachineError;
pub use vm::hint_source::{HintError, HintSource};
pub use vm::machine::{DestinationMachine, SourceMachine};
pub use vm::state::{MachineState, StateError, StateSection};
pub use vm::still_machine::StillMachine;
pub use vm::throttle::Throttle;
pub use wire::{Address, Connection, Listener};
