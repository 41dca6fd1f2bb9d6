// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Missing pages that come from a peer, asked for or not.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use spec::PageRange;

use super::error::PagingError;
use super::pager::Origin;
use super::shared::Shared;
use super::threads::Paging;

/// How long is waited while the kernel takes no pages.
const PAUSE: Duration = Duration::from_micros(100);

impl Paging {
    /// `content`, which has their size, has come for the pages of `range`, which lie in one mapping. It is placed where it is still
    /// missing, and whoever waits for it goes on. Several threads may do that at once for different pages.
    ///
    /// # Errors
    /// [`PagingError`] if a page cannot be placed.
    pub fn arrived(&self, range: PageRange, content: &[u8]) -> Result<(), PagingError> {
        let Self { shared, .. } = self;
        // A thread that answers faults reads what was discarded.
        let mut refused = || {
            thread::sleep(PAUSE);
            Ok(())
        };
        shared.missing.place(range, content, &mut refused)?;
        let mut was_asked_for = 0;
        shared.asked.take(range, |began| {
            was_asked_for += 1;
            shared.latency.record(began.elapsed());
        });
        shared.faults.fetch_add(was_asked_for, Ordering::Relaxed);
        let unasked = range.count() - was_asked_for.min(range.count());
        shared.loaded.fetch_add(unasked, Ordering::Relaxed);
        shared.complete_if_nothing_is_missing();
        Ok(())
    }

    /// The pages of `range` are zero at the peer, so nothing comes for them.
    pub fn arrived_zero(&self, range: PageRange) {
        self.discard(range);
    }

    /// The pages that have not come, of the 64 pages of `word`.
    pub(crate) fn missing_in(&self, word: usize) -> u64 {
        self.shared.missing.absent_in(word)
    }

    /// The runs of pages that have not come, ascending.
    pub fn missing(&self) -> Vec<PageRange> {
        self.shared.missing.absent_runs()
    }

    /// Asks the peer again for every page that somebody waits for.
    pub fn ask_again(&self) {
        let Origin::Peer(peer) = &self.shared.origin else {
            return;
        };
        for page in self.shared.asked.pages() {
            if self.shared.missing.is_absent(page) {
                peer.ask(page);
            } else if let Some(one) = PageRange::new(page, 1) {
                self.shared.let_go_on(one);
            }
        }
    }
}

impl Shared {
    /// Nothing comes for the pages of `range`, which are zero: whoever waits for one of them asks once more.
    pub(super) fn let_go_on(&self, range: PageRange) {
        let mut waits = false;
        self.asked.take(range, |began| {
            waits = true;
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.latency.record(began.elapsed());
        });
        if waits && let Err(error) = self.missing.wake_all(range) {
            self.fail(error);
        }
    }
}
