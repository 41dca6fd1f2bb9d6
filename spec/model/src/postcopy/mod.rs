// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that was handed over before its memory, as an executable model: requests, background pages, discards, a connection that
//! breaks at any moment with all that is in its buffers, recovery, a source that saves what it still has, and two halves of which a
//! whole guest is made.
//!
//! The model begins when the source has stopped its guest. The pages that it still has to send are *promised*. A page that is not
//! promised was skipped because of a hint, and is zero.
//!
//! | module | what it is |
//! |---|---|
//! | [`clause`] | what both sides must do, each with a switch |
//! | [`state`] | the state of all of them together, and what must always hold |
//! | [`steps`] | the steps from state to state |
//! | [`story`] | a path to a broken property, in words |
//! | [`catalogue`] | the smallest setup that goes wrong without each clause, and setups for the whole |

pub mod catalogue;
pub mod clause;
pub mod state;
pub mod steps;
pub mod story;

pub use clause::{PostcopyClause, PostcopyRule};
pub use state::{Postcopy, PostcopySetup, PostcopyState};
pub use steps::PostcopyAction;
