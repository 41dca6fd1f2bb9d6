// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a migration reports: status, events, rounds and their maps, sources of left-out pages, and the trace.

pub mod events;
pub mod page_source;
pub(crate) mod probes;
pub(crate) mod rates;
pub mod round_map;
pub mod stats;
pub mod trace;
