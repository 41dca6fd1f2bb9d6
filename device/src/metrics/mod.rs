// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a Prometheus server reads of the devices. Nothing is counted for it: a scrape looks at what the devices
//! count anyway.
//!
//! | module | what it is |
//! |---|---|
//! | [`collector`] | the metrics |
//! | [`server`] | HTTP over a unix socket |

pub mod collector;
pub mod server;

pub use collector::{Observed, registry};
pub use server::MetricsServer;
