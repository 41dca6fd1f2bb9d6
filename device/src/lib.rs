// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user back end for the virtio memory balloon.
//!
//! The front end (a VMM) connects to the vhost-user socket. What the guest puts into the balloon or reports as free
//! is given back to the host; its statistics are kept.
//!
//! A migrator connects to the control socket, hands over a shared bitmap and opens and closes hint epochs. The guest's
//! free page hints of the open epoch end up in the bitmap, and nowhere else: nothing hinted is discarded or written.
//!
//! | module | what it is |
//! |---|---|
//! | [`agent`] | the guest's agent: hints at the grain of one page |
//! | [`args`] | the command line, and the [`Program`] it becomes |
//! | [`daemon`] | front ends come and go, devices stay: a whole [`Program`], or one device ([`run`]) |
//! | [`metrics`] | what a Prometheus server reads |
//! | [`sandbox`] | what the process may still do |
//! | [`balloon`] | the device: negotiated features, configuration space, queues |
//! | [`hints`] | free page hinting |
//! | [`vhost_user`] | the front end's protocol |
//! | [`control`] | the control socket |
//! | [`trace`] | recording what the device does, for tests |
//! | [`sockets`] | unix sockets: listening, and messages that carry file descriptors |

pub mod agent;
pub mod args;
pub mod balloon;
pub mod control;
pub mod daemon;
pub mod hints;
pub mod metrics;
pub mod sandbox;
pub mod sockets;
pub mod trace;
pub mod vhost_user;

pub use args::{Args, Config, Program};
pub use daemon::{DaemonError, run};
