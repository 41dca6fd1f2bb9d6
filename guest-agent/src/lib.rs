// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest side of free page hinting: a `no_std` virtio-balloon driver for virtio-mmio.
//!
//! It is for guests without an operating system, or with one of their own. The driver does not allocate, needs no
//! interrupt and never waits: the caller polls, and decides which pages to hint and when to use them again.
//!
//! ```no_run
//! use lacuna_balloon_driver::{Balloon, DmaRegion, Mmio};
//! use spec::{PageRange, balloon::Command};
//!
//! # fn memory() -> DmaRegion { unimplemented!() }
//! # fn free_ranges() -> Vec<PageRange> { Vec::new() }
//! # fn registers() -> Mmio { unimplemented!() }
//! let mut balloon = Balloon::new(registers(), memory(), None)?;
//! loop {
//!     match balloon.poll() {
//!         Some(Command::Start(id)) => {
//!             balloon.begin_round(id)?;
//!             for range in free_ranges() {
//!                 balloon.hint(range)?;
//!             }
//!             balloon.end_round()?;
//!         }
//!         Some(Command::Stop) => { /* hint no more, keep what was hinted */ }
//!         Some(Command::Done) => { /* take the hinted pages back */ }
//!         None => break,
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`balloon`] | the device: features, the command id, rounds of hints |
//! | [`queue`] | a split virtqueue of one-descriptor buffers |
//! | [`mmio`] | the registers of virtio-mmio |
//! | [`dma`] | memory that guest and device share |
#![no_std]

#[cfg(test)]
extern crate std;

pub mod balloon;
pub mod dma;
pub mod mmio;
pub mod queue;

pub use balloon::{Balloon, ProbeError, RoundError};
pub use dma::DmaRegion;
pub use mmio::{Mmio, Register, Registers};
