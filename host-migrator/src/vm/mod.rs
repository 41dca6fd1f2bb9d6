// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VMM gives the engine: a machine, dirty logs and a source of hints. Traits; nothing here does I/O.

pub mod dirty_log;
pub mod error;
pub mod hint_source;
pub mod machine;
pub mod state;
pub mod still_machine;
pub mod throttle;
