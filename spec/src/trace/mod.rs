// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The trace: what device, migrator and machine did, in one order.
//!
//! All processes of a test map one file. To record an event, a process takes a slot with one `fetch_add`, so there is
//! one order for all processes. `spec/trace.md` says on which side of its effect each [`Event`] is recorded, and why
//! the order then proves that the rule was kept.
//!
//! ```text
//! byte 0     magic "LACUNATR"   8   version, little-endian   16  slots
//!      24    slots taken (more than there are: the rest was dropped)
//!      4096  slots of 32 bytes: four 64-bit words, the first written last and never 0
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`event`] | the events |
//! | [`recorder`] | writing to the shared file |
//! | [`reader`] | reading a file that is complete |
//! | `check` | checking a trace against the rule (feature `trace-check`) |

#[cfg(any(test, feature = "trace-check"))]
pub mod check;
pub mod event;
mod payload;
pub mod reader;
pub mod recorder;

pub use event::{Actor, Event, PageBits, Record, Role};
pub use reader::{Reader, TraceError};
pub use recorder::Recorder;

/// Bytes before the first slot.
pub const HEADER_BYTES: usize = 4096;
/// The first word: "LACUNATR".
pub const MAGIC: u64 = u64::from_le_bytes(*b"LACUNATR");
/// The layout's version.
pub const VERSION: u64 = 1;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 32;

const MAGIC_WORD: usize = 0;
const VERSION_WORD: usize = 1;
const SLOTS_WORD: usize = 2;
const TAKEN_WORD: usize = 3;
const SLOT_WORDS: usize = SLOT_BYTES / 8;
const FIRST_SLOT_WORD: usize = HEADER_BYTES / 8;

/// Bytes of a trace with `slots` slots; `None` if that overflows.
pub const fn bytes_for(slots: u64) -> Option<u64> {
    match slots.checked_mul(SLOT_BYTES as u64) {
        Some(bytes) => bytes.checked_add(HEADER_BYTES as u64),
        None => None,
    }
}
