// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The few pages of the model's guest, and sets of them.

use std::fmt;

/// The most pages a guest of the model can have.
pub const MAX_PAGES: usize = 4;

/// A value for each page.
pub type PerPage<T> = [T; MAX_PAGES];

/// A page of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Page(u8);

impl Page {
    /// The page that stories call A.
    pub const A: Self = Self(0);
    /// The page that stories call B.
    pub const B: Self = Self(1);
    /// The page that stories call C.
    pub const C: Self = Self(2);

    /// The page's index in a [`PerPage`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The next page in a guest of `pages` pages; after the last page comes the first.
    pub(crate) const fn next(self, pages: u8) -> Self {
        Self((self.0 + 1) % pages)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", char::from(b'A' + self.0))
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(b'A' + self.0))
    }
}

/// A set of pages. It stands for a bitmap of the real system.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelPages(u8);

impl ModelPages {
    /// No page.
    pub const EMPTY: Self = Self(0);

    /// All pages of a guest that has `pages`.
    pub const fn all(pages: u8) -> Self {
        Self((1 << pages) - 1)
    }

    /// Whether `page` is in the set.
    pub const fn has(self, page: Page) -> bool {
        self.0 & (1 << page.0) != 0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The pages, in order.
    pub fn iter(self) -> impl Iterator<Item = Page> {
        (0..MAX_PAGES as u8)
            .map(Page)
            .filter(move |&page| self.has(page))
    }

    pub(crate) fn insert(&mut self, page: Page) {
        self.0 |= 1 << page.0;
    }

    pub(crate) fn remove(&mut self, page: Page) {
        self.0 &= !(1 << page.0);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) fn clear(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    /// Empties the set and returns what it had.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    pub(crate) const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl FromIterator<Page> for ModelPages {
    fn from_iter<I: IntoIterator<Item = Page>>(pages: I) -> Self {
        let mut set = Self::EMPTY;
        for page in pages {
            set.insert(page);
        }
        set
    }
}

impl fmt::Debug for ModelPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A permutation of the pages. Pages differ only in their names, so of states that differ only in names one is visited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renaming(PerPage<u8>);

impl Renaming {
    /// All permutations of `pages` pages, the identity first.
    pub(crate) fn all(pages: u8) -> Vec<Self> {
        let mut all = vec![[0, 1, 2, 3]];
        for last in 1..pages {
            let swapped: Vec<_> = (all.iter())
                .flat_map(|names: &PerPage<u8>| {
                    (0..last).map(|other| {
                        let mut names = *names;
                        names.swap(usize::from(last), usize::from(other));
                        names
                    })
                })
                .collect();
            all.extend(swapped);
        }
        all.into_iter().map(Self).collect()
    }

    pub(crate) fn page(&self, page: Page) -> Page {
        Page(self.0[page.index()])
    }

    pub(crate) fn set(&self, set: ModelPages) -> ModelPages {
        set.iter().map(|page| self.page(page)).collect()
    }

    pub(crate) fn each<T: Copy>(&self, of: PerPage<T>) -> PerPage<T> {
        let mut renamed = of;
        for (old, &new) in self.0.iter().enumerate() {
            renamed[usize::from(new)] = of[old];
        }
        renamed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn renamings_are_all_the_permutations() {
        for (pages, count) in [(1, 1), (2, 2), (3, 6), (4, 24)] {
            let all: BTreeSet<_> = Renaming::all(pages).into_iter().map(|r| r.0).collect();
            assert_eq!(all.len(), count);
        }
    }

    #[test]
    fn a_renaming_moves_sets_and_arrays_alike() {
        for renaming in Renaming::all(3) {
            let set: ModelPages = [Page::A, Page::C].into_iter().collect();
            let flags = [true, false, true, false];
            let (set, flags) = (renaming.set(set), renaming.each(flags));
            for page in ModelPages::all(3).iter() {
                assert_eq!(set.has(page), flags[page.index()]);
            }
        }
    }
}
