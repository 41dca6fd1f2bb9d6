// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why missing pages cannot be brought.

use std::io;

use super::pager::PagerError;
use super::userfaultfd::UserfaultfdError;

/// Missing pages cannot be brought. A guest that needs one must not run on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagingError {
    /// Faults cannot be handled at all.
    #[error(transparent)]
    Userfaultfd(#[from] UserfaultfdError),
    /// The content of a page cannot be had.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// A page was there before it was placed.
    #[error(
        "the page at {0:#x} of the guest's memory was there before its content was: another process has touched it, and has seen \
         zeros"
    )]
    Foreign(u64),
    /// A page with content has no address.
    #[error("the page at {0:#x} of the guest's memory is not mapped")]
    Unmapped(u64),
    /// The process whose memory it is has ended.
    #[error("the process that waits for pages has ended")]
    Gone,
    /// The faults cannot be read.
    #[error("page faults cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The kernel refuses a page, for example because the host has no memory left.
    #[error("cannot {action} the page at {gpa:#x} of the guest's memory: {source}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The page's guest-physical address.
        gpa: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("a thread for page faults cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// A bug.
    #[error("a bug: a thread that handles page faults panicked: {0}")]
    Panicked(String),
}
