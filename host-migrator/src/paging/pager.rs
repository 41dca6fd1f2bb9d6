// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who knows what a missing page contains.

use std::fmt;
use std::sync::Arc;

use spec::{PAGE_SIZE, PageRange};

/// Knows the content of missing pages: a snapshot file, or a peer.
///
/// Several threads ask at once, for different pages.
pub trait Pager: Send + Sync {
    /// Fills `content`, which has their size, with the pages of `range`. All of them are pages that
    /// [`MissingPages`](super::MissingPages) was told to have content, and they lie in one mapping.
    ///
    /// # Errors
    /// [`PagerError`] if one of them cannot be had or is not what it was. Nothing of `content` is used then.
    fn read(&self, range: PageRange, content: &mut [u8]) -> Result<(), PagerError>;

    /// A hint that pages of `range` will be asked for soon.
    fn will_read(&self, range: PageRange) {
        let _ = range;
    }
}

/// Asks a peer for missing pages, which come later: [`Paging::arrived`](super::Paging::arrived).
pub trait PageRequests: Send + Sync {
    /// Somebody waits for `page`. Does not wait for the answer. If nobody can be asked now, the page is asked for again by
    /// [`Paging::ask_again`](super::Paging::ask_again).
    fn ask(&self, page: u64);
}

/// Where missing pages come from.
pub(super) enum Origin {
    /// Their content can be read at once.
    Pager(Arc<dyn Pager>),
    /// It comes by itself, or when it was asked for.
    Peer(Arc<dyn PageRequests>),
}

/// The content of a page cannot be had. Whoever needs the page must not go on.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct PagerError {
    /// Why, in a sentence that names the page.
    pub reason: String,
}

impl PagerError {
    /// For `reason`.
    pub fn new(reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        Self { reason }
    }
}

/// The guest-physical address of `page`, for messages.
pub(super) fn address(page: u64) -> u64 {
    page.saturating_mul(PAGE_SIZE)
}
