// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's agent: tells the host which pages are free, at the grain of one page.
//!
//! A balloon driver hints what it can allocate, in blocks of 4 MiB. The agent reads the kernel's page flags
//! (`/proc/kpageflags`) instead: it sees every free page, allocates none of them, puts no pressure on memory and
//! makes the kernel zero nothing. It speaks the agent protocol ([`spec::agent`]) over a virtio-console port, vsock
//! or any character device.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | the command line |
//! | [`free_pages`] | which pages are free: `/proc/kpageflags` |
//! | [`key`] | the file with the key by which the host knows the agent |
//! | [`memory`] | where memory is: `/proc/zoneinfo` |
//! | [`page_flags`] | what a look at a page's flags proves |
//! | [`port`] | what connects the agent with the host |
//! | [`preparation`] | what the user may let it do first: drop caches, compact |
//! | [`session`] | questions and answers |
//! | [`settings`] | what the kernel does with free pages |
//! | [`summary`] | the same for people |
#![forbid(unsafe_code)]

pub mod args;
pub mod free_pages;
pub mod key;
pub mod memory;
pub mod page_flags;
pub mod port;
pub mod preparation;
pub mod session;
pub mod settings;
pub mod summary;

pub use args::Args;
