// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages that a peer was asked for, because somebody waits for them.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use spec::PageRange;

/// The most pages that a status names.
const MOST_NAMED: usize = 16;

/// A page that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WaitingFor {
    /// Its page frame number.
    pub page: u64,
    /// How long, in milliseconds.
    pub ms: u64,
}

/// Pages, and when their faults were read.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<BTreeMap<u64, Instant>>);

impl Asked {
    /// The fault at `page` was read at `began`.
    pub(super) fn note(&self, page: u64, began: Instant) {
        self.0.lock().entry(page).or_insert(began);
    }

    /// Takes out the pages of `range`. Calls `asked` with when the fault at each was read.
    pub(super) fn take(&self, range: PageRange, mut asked: impl FnMut(Instant)) {
        let mut pages = self.0.lock();
        while let Some((page, _)) = pages.range(range.first()..range.end()).next() {
            let page = *page;
            pages.remove(&page).into_iter().for_each(&mut asked);
        }
    }

    /// All of them.
    pub(super) fn pages(&self) -> Vec<u64> {
        self.0.lock().keys().copied().collect()
    }

    /// Those that were asked for first.
    pub(super) fn waiting_for(&self) -> Vec<WaitingFor> {
        let pages = self.0.lock();
        let mut waiting: Vec<_> = (pages.iter())
            .map(|(page, since)| WaitingFor {
                page: *page,
                ms: since.elapsed().as_millis() as u64,
            })
            .collect();
        waiting.sort_by_key(|one| (std::cmp::Reverse(one.ms), one.page));
        waiting.truncate(MOST_NAMED);
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_waited_for_until_it_is_taken_and_counts_once() {
        let asked = Asked::default();
        for page in [7, 9, 7, 12] {
            asked.note(page, Instant::now());
        }
        let mut taken = 0;
        asked.take(PageRange::new(7, 5).unwrap(), |_| taken += 1);
        assert_eq!((taken, asked.pages()), (2, vec![12]));
        assert_eq!(asked.waiting_for()[0].page, 12);
    }
}
