// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Live migration that skips the memory the guest does not use.
//!
//! A VMM gives the engine its guest memory ([`GuestRam`]), its dirty logs ([`DirtyLog`]), a source of
//! free page hints ([`HintSource`]), a way to stop and save the machine ([`SourceMachine`]) and a
//! connection ([`Channel`]). `spec/free-page-hinting.md` has the rule that makes skipping safe;
//! `ARCHITECTURE.md` follows a page and a hand-over through this crate.
#![forbid(unsafe_code)]

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod bitmap;
pub mod clause;
pub mod destination;
pub mod dirty_log;
pub mod hints;
mod holes;
pub mod machine;
pub mod ownership;
pub mod page_source;
mod panics;
pub mod params;
pub mod ram;
pub mod round_map;
pub mod sending_order;
pub mod source;
pub mod stats;
pub mod trace;
pub mod transport;
pub mod zero;

pub use bitmap::MigrationBitmap;
pub use clause::Clause;
pub use destination::{
    Incoming, ReceiveError, ReceiveReport, ReceiveState, ReceiveStatus, receive,
};
pub use dirty_log::{DirtyLog, DirtyLogError, LogSource};
pub use hints::{ControlClient, DeviceHints, HintError, HintSource};
pub use holes::HoleBudget;
pub use machine::{DestinationMachine, MachineError, SourceMachine};
pub use ownership::{ClaimError, Owner, Ownership, OwnershipRecord, Session};
pub use page_source::{PageSource, PageSources, PagesBySource};
pub use params::{BESIDES_MEMORY, EARLY_HARVESTS, MigrationParams, STOP_AND_SAVE};
pub use ram::{GuestRam, RamError, RamRegion};
pub use round_map::RoundMaps;
pub use source::{Migration, MigrationError, MigrationHandle, MigrationMonitor, Source};
pub use stats::{MigrationReport, MigrationState, MigrationStatus};
pub use trace::Trace;
pub use transport::{Address, Channel, Listener};
