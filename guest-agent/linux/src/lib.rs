// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's agent: it tells the host which pages are free, page by page.
//!
//! A balloon driver hints memory that it can allocate, in blocks of 4 MiB. The agent reads the kernel's page flags
//! (`/proc/kpageflags`) instead. It sees every free page and allocates none of them, so it causes no memory pressure and no
//! zeroing. It uses the agent protocol ([`spec::agent`]) over a virtio-console port, vsock or any character device.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | the command line |
//! | [`free_pages`] | which pages are free: `/proc/kpageflags` |
//! | [`key`] | the file with the key by which the host recognises the agent |
//! | [`memory`] | where there is memory: `/proc/zoneinfo` |
//! | [`page_flags`] | what a page's flags prove |
//! | [`port`] | the connection to the host |
//! | [`preparation`] | what it may do first, if the user allows it: drop caches, compact memory |
//! | [`session`] | requests and answers |
//! | [`settings`] | what the kernel does with free pages |
//! | [`summary`] | a summary for people |
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
