// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that runs before its memory is there, as an executable model: what page faults, a loader, discards, back ends and damage
//! can do to a page in any order.
//!
//! Each page has content in a file, or at a peer, and is missing at first. A thread answers the guest's faults, and another one loads
//! what nobody waits for.
//!
//! | module | what it is |
//! |---|---|
//! | [`clause`] | what the threads must do, each with a switch |
//! | [`state`] | the state of all of them together, their steps, and what must always hold |
//! | [`story`] | a path to a broken property, in words |
//! | [`catalogue`] | the smallest setup that goes wrong without each clause, and setups for the whole |

pub mod catalogue;
pub mod clause;
pub mod state;
pub mod story;

pub use clause::{LazyClause, LazyRule};
pub use state::{LazyAction, LazySetup, LazyState, Restoring};
