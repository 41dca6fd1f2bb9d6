// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon: devices, and the process around them.
//!
//! | module | what it is |
//! |---|---|
//! | [`program`] | the process: its devices, their end, the sandbox |
//! | [`embedded`] | one device in a process that is not this program's |
//! | [`device`] | one device: sockets and threads |
//! | [`front_ends`] | its front ends, one after the other |
//! | [`error`] | the errors, and the events of a device |
//! | `inherited` | the connection that `--fd` names |
//! | [`ticker`] | tells the balloon the time |
//! | [`logging`] | the log |
//! | [`signals`] | SIGTERM and SIGINT |
//! | [`service_manager`] | sockets from systemd, and reports to it |

pub mod device;
pub mod embedded;
pub mod error;
pub mod front_ends;
mod inherited;
pub mod logging;
pub mod program;
pub mod service_manager;
pub mod signals;
pub mod ticker;

pub use embedded::run;
pub use error::DaemonError;
