// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Metrics for a Prometheus server. A scrape reads counters that the devices have anyway.
//!
//! | module | what it is |
//! |---|---|
//! | [`collector`] | the metrics |
//! | [`sample`] | what the metrics show of a device at one moment |
//! | [`server`] | HTTP over a unix socket |

pub mod collector;
pub mod sample;
pub mod server;

pub use collector::registry;
pub use sample::Observed;
pub use server::MetricsServer;
