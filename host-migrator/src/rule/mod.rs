// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a page may be skipped: the order of arming, hinting and harvesting (`spec/free-page-hinting.md`).
//!
//! A VMM that keeps its own migration loop can use this room alone. `examples/own_loop.rs` is such a loop:
//!
//! 1. [`Tracker::arm`] starts the dirty logs and marks all of memory as to be sent.
//! 2. [`Tracker::open`] opens an [`Epoch`]: the guest is asked for its free pages.
//! 3. [`Epoch::pass`] gives a [`Pass`] over what is pending, and [`Pass::words`] the words to be claimed. [`Pass::claim`] takes the pages of a word out, and says which
//!    of them are hinted, which are holes, and which are to be copied.
//! 4. [`Epoch::sync`] does a harvest at any moment and opens the next epoch; [`Epoch::end`] does one without.
//! 5. With the guest stopped, [`Tracker::last_harvest`] and [`Tracker::rest`] give the remaining pages.
//! 6. [`put_back`] ends it, in success, failure and cancel alike.

pub mod clause;
mod delivered;
mod early_harvest;
mod given_up;
mod hint_life;
mod known_holes;
#[cfg(all(loom, test))]
mod loom;
mod pass;
mod put_back;
mod tracker;

pub use delivered::Delivered;
pub use early_harvest::EarlyPlan;
pub use pass::{Claimed, Copied, Pass};
pub use put_back::put_back;
pub use spec::hint_map::{HintBits, HintPhase, Tellers};
pub use tracker::{Epoch, Flush, Harvest, Tracker};
