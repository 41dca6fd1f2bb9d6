// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes from the process, once it has its sockets, everything that it does not need to serve them.
//!
//! Guest memory, front ends' messages and control messages come from other processes. If one of these takes over this
//! process, it can do no more than the sandbox allows. `SECURITY.md` has the threat model.
//!
//! | module | what it is |
//! |---|---|
//! | [`mode`] | how much the sandbox restricts |
//! | [`entry`] | enters the sandbox |
//! | [`seccomp`] | the system calls that each kind of thread may make |
//! | [`landlock`] | no file system, no network, no signals to others |
//! | [`limits`] | file descriptors, memory, no core files |
//! | [`remover`] | the process that removes the sockets' files at the end |

pub mod entry;
pub mod landlock;
pub mod limits;
pub mod mode;
pub mod remover;
pub mod seccomp;

pub use entry::{SandboxError, enter};
pub use mode::SandboxMode;
