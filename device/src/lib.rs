// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user back end for the virtio memory balloon.
//!
//! The front end (a VMM) connects to the vhost-user socket. Memory that the guest puts into the balloon or reports as
//! free goes back to the host. The device keeps the guest's statistics.
//!
//! A migrator connects to the control socket, hands over a shared bitmap, and opens and closes hint epochs. The guest's
//! hints of the open epoch become bits of that bitmap and have no other effect: hinted memory is neither discarded nor
//! written.
//!
//! Each module uses only those above it in this list. The test `imports` of `spec/testing` checks that.
//!
//! | module | what it is |
//! |---|---|
//! | [`sandbox`] | restricting the process |
//! | [`threads`] | threads that know their device, and servers that can be stopped |
//! | [`sockets`] | unix sockets: listening, and messages that carry file descriptors |
//! | [`memory`] | memory that other processes lend |
//! | [`trace`] | recording what the device does, for tests |
//! | [`virtqueue`] | virtqueues |
//! | [`guest`] | the guest, as its front end presents it |
//! | [`hints`] | free page hinting |
//! | [`balloon`] | the balloon: the sum of its queues |
//! | [`vhost_user`] | the front end's protocol |
//! | [`control`] | the control socket |
//! | [`agent`] | the socket of the guest's agent: hints page by page |
//! | [`metrics`] | metrics for a Prometheus server |
//! | [`args`] | the command line, and the [`Program`] it becomes |
//! | [`daemon`] | front ends come and go, devices stay: a whole [`Program`], or one device ([`run`]) |

pub mod agent;
pub mod args;
pub mod balloon;
pub mod control;
pub mod daemon;
pub mod guest;
pub mod hints;
pub mod memory;
pub mod metrics;
pub mod sandbox;
pub mod sockets;
pub mod threads;
pub mod trace;
pub mod vhost_user;
pub mod virtqueue;

pub use args::{Args, Config, Program};
pub use daemon::{DaemonError, run};
