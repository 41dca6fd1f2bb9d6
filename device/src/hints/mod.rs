// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free page hinting: the guest's free pages become bits of a map.
//!
//! | module | what it is |
//! |---|---|
//! | [`state_machine`] | epochs of the migrator, command ids of the guest |
//! | [`sink`] | from descriptor chains to bits of the map |
//! | [`latency`] | how long hints take |
//! | [`agent`] | the guest's agent as a source of hints |
//! | [`person`] | a round of hints that a person has started |
//! | [`hinting`] | all of these together: the hint queue, the map, and how far the guest is |
//! | [`agent_maps`] | the agent's maps, taken into the open epoch |
//! | [`epochs`] | epochs are opened and closed |
//! | [`holder`] | for whom the guest hints: a migrator, or a person |

pub mod agent;
pub mod agent_maps;
pub mod epochs;
pub mod hinting;
pub mod holder;
pub mod latency;
pub mod person;
pub mod sink;
pub mod state_machine;

pub use hinting::FreePageHinting;
