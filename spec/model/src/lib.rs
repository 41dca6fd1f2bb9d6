// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rule of free page hinting as an executable model.
//!
//! A guest with a few pages, a balloon device, a migrator and a destination take all the steps that they may take, in
//! every order. [Stateright](https://docs.rs/stateright) visits every state and looks for one that breaks a
//! [property](properties). Each clause of the rule has a [switch](rule). With a clause switched off the checker finds
//! how a page gets lost, and [`story`] tells it in plain words.
//!
//! | module | what it is |
//! |---|---|
//! | [`pages`] | a handful of pages, and sets of them |
//! | [`setup`] | who takes part, and how much each may do |
//! | [`rule`] | the clauses, each with a switch |
//! | [`guest`] | the guest: its pages, its driver, its agent |
//! | [`device`] | the balloon device: queue, epochs, hint map |
//! | [`logs`] | dirty logs: KVM's, a back end's, the VMM's own |
//! | [`host`] | the migrator |
//! | [`network`] | channels to the destination, and the destination |
//! | [`operator`] | the operator, who decides when neither side can know who owns the guest |
//! | [`state`] | the state of all of them together, and the steps from state to state |
//! | [`properties`] | what must always hold, and what must hold at the end |
//! | [`mod@file`] | snapshot files: a model of its own |
//! | [`lazy`] | a guest that runs before its memory is there: a model of its own |
//! | [`postcopy`] | a guest that is handed over before its memory: a model of its own |
//! | [`story`] | a path to a broken property, in words |
//! | [`told`] | what a search or a visit of any model has found |
//! | [`check`] | a visit of all states |
//! | [`document`] | the stories in `spec/free-page-hinting.md`, `spec/file-format.md`, `spec/lazy-restore.md` and `spec/postcopy.md` |
//! | [`catalogue`] | setups and stories by name: each clause, and what other hypervisors do |
//!
//! This is a crate of its own so that users of `spec`'s types do not depend on the checker.

pub mod catalogue;
pub mod check;
pub mod device;
pub mod document;
pub mod file;
pub mod guest;
pub mod host;
pub mod lazy;
pub mod logs;
pub mod network;
pub mod operator;
pub mod pages;
pub mod postcopy;
pub mod properties;
pub mod rule;
mod search;
pub mod setup;
pub mod state;
pub mod story;
mod switches;
pub mod told;

pub use rule::{Clause, Rule};
pub use setup::Setup;
pub use state::{Action, Migration, State};
