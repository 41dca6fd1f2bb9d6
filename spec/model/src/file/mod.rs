// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a snapshot file is written, as an executable model: what a power cut, a killed process, a second save, a disk that
//! fails or a block that rots can do to it.
//!
//! A guest goes on writing while a saver copies its pages into a file. What the saver writes is in the page cache first, and
//! reaches the disk block by block, in any order, until it is synced. After each step somebody may try to restore from the
//! file's final name. When a page may be copied is not this model's question: the model of the rule answers it.
//!
//! | module | what it is |
//! |---|---|
//! | [`clause`] | what the saver and the loader must do, each with a switch |
//! | [`setup`] | who takes part, and what may go wrong |
//! | [`disk`] | files and their folder: what is in the page cache, and what is on the disk |
//! | [`saver`] | a save, step by step |
//! | [`loader`] | what somebody who restores makes of a file |
//! | [`state`] | the state of all of them together |
//! | [`properties`] | what must always hold |
//! | [`story`] | a path to a broken property, in words |
//! | [`catalogue`] | the smallest setup that goes wrong without each clause, and setups for the whole |

pub mod catalogue;
pub mod clause;
pub mod disk;
pub mod loader;
pub mod properties;
pub mod saver;
pub mod setup;
pub mod state;
pub mod story;

pub use clause::{FileClause, FileRule};
pub use setup::FileSetup;
pub use state::{FileAction, FileState, Saving};
