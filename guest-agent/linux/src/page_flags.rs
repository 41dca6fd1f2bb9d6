// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What page flags prove: which pages are certainly free, and which must be read again.
//!
//! The kernel takes no lock when it fills `/proc/kpageflags`. It reports a page as free (`KPF_BUDDY`) if the page, or the
//! first page of an aligned block around it, is marked as free with a sufficient size. Mark and size are two reads
//! (`is_free_buddy_page`). If the first page is allocated between them, the size is another number. Then a page outside the
//! block, which has been in use all the time, looks free in this one read. If the agent reported such a page and the
//! guest did not write it again, it would be lost. So the agent reports a page only if two such races would be needed for a
//! wrong report.
//!
//! Let *P* be a page that has been in use all the time and looks free because of such a race.
//!
//! 1. *P* has no references (the kernel checks that first). So *P* is not the first page of an allocation, unless it is
//!    briefly frozen (then it is locked) or of a kind without references (slabs, page tables). Other flags show all of
//!    these cases.
//! 2. So *P* is a later page in an allocation of several pages. If the allocation is a compound page, *P* has the flag of
//!    one. If not, *P* may have only the flag `KPF_BUDDY`. But the allocation is an aligned power of two, so the other
//!    page of *P*'s aligned pair belongs to it, too, and is in use all the time.
//!
//! So a page without another flag counts as free after one read if
//!
//! - the other page of its pair looks free in the same way: a wrong report would need two races, one right after the
//!   other; or
//! - the other page belongs to a process or a file (`KPF_LRU`) or to a slab, and is not compound: then it is an
//!   allocation of its own, and *P* is not in an allocation.
//!
//! All other pages are read again and reported if they look free twice: a wrong report would need two races at the same
//! page. To report a page that was free at any moment of the read is right, whatever happens to it later, because its
//! writes have been in the dirty log since before the request.
//!
//! This requires that the two reads of the kernel see writes in the order in which they were made. On processors without
//! that order, a race can last longer than one page, and all pages are read twice.
//!
//! Source: Linux 6.1 to 6.18, `fs/proc/page.c`, `mm/page_alloc.c`.

/// On a page in use: its content is valid. On a free page: it was reported to the host.
const KPF_UPTODATE: u64 = 1 << 3;
/// A page of a process or a file.
const KPF_LRU: u64 = 1 << 5;
/// A page of the kernel's small objects.
const KPF_SLAB: u64 = 1 << 7;
/// The page is in the kernel's free lists.
const KPF_BUDDY: u64 = 1 << 10;
/// The first page of a compound page.
const KPF_COMPOUND_HEAD: u64 = 1 << 15;
/// A later page of a compound page.
const KPF_COMPOUND_TAIL: u64 = 1 << 16;

/// Whether the processor sees the writes of others in order.
const ORDERED: bool = cfg!(target_arch = "x86_64");

/// The result for up to 64 pages whose flags were read together, with a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Pages that look free.
    pub free: u64,
    /// Those of them that need no second read.
    pub certain: u64,
}

impl Seen {
    /// Evaluates the `flags` of up to 64 pages from `first` on.
    pub fn new(flags: &[[u8; 8]], first: u64) -> Self {
        let pages = || flags.iter().map(|flags| u64::from_ne_bytes(*flags));
        let (any, all) = pages().fold((0, u64::MAX), |(any, all), page| (any | page, all & page));
        // In most words all pages are in use, or all are free.
        let mut seen = if any & KPF_BUDDY == 0 {
            Self::default()
        } else if flags.len() == 64 && is_plainly_free(any) && is_plainly_free(all) {
            Self {
                free: u64::MAX,
                certain: u64::MAX,
            }
        } else {
            Self::by_pairs(flags)
        };
        if !ORDERED || !first.is_multiple_of(2) {
            seen.certain = 0;
        }
        seen
    }

    /// Evaluates the flags pair by pair.
    fn by_pairs(flags: &[[u8; 8]]) -> Self {
        let mut seen = Self::default();
        for (index, pair) in flags.chunks(2).enumerate() {
            // A page whose flags are not known proves nothing.
            let flags = |index: usize| {
                pair.get(index)
                    .map_or(0, |flags| u64::from_ne_bytes(*flags))
            };
            let (even, odd) = (flags(0), flags(1));
            if (even | odd) & KPF_BUDDY == 0 {
                continue;
            }
            let bits =
                |even: bool, odd: bool| (u64::from(even) | u64::from(odd) << 1) << (2 * index);
            seen.free |= bits(even & KPF_BUDDY != 0, odd & KPF_BUDDY != 0);
            seen.certain |= bits(is_certain(even, odd), is_certain(odd, even));
        }
        seen
    }
}

/// Whether a page with the flags `page` is certainly free, if the other page of its pair has the flags `other`.
fn is_certain(page: u64, other: u64) -> bool {
    is_plainly_free(page) && (is_plainly_free(other) || is_apart(other))
}

/// Whether the page looks free and has no flag of a page in use.
fn is_plainly_free(flags: u64) -> bool {
    flags & !KPF_UPTODATE == KPF_BUDDY
}

/// Whether the page is in use and an allocation of its own.
fn is_apart(flags: u64) -> bool {
    let others = KPF_BUDDY | KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
    flags & (KPF_LRU | KPF_SLAB) != 0 && flags & others == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MMAP: u64 = 1 << 11;

    fn seen(pages: &[u64], first: u64) -> Seen {
        let flags: Vec<[u8; 8]> = pages.iter().map(|flags| flags.to_ne_bytes()).collect();
        Seen::new(&flags, first)
    }

    #[test]
    fn a_free_page_is_certain_if_the_other_of_its_pair_is_free_or_apart() {
        for (other, vouches) in [
            (KPF_BUDDY, true),
            (KPF_BUDDY | KPF_UPTODATE, true),
            (KPF_LRU | KPF_UPTODATE | MMAP, true),
            (KPF_SLAB, true),
            (0, false),
            (MMAP, false),
            (KPF_BUDDY | KPF_LRU, false),
            (KPF_BUDDY | KPF_COMPOUND_TAIL, false),
            (KPF_LRU | KPF_COMPOUND_HEAD, false),
            (KPF_SLAB | KPF_COMPOUND_TAIL, false),
        ] {
            for (pages, free) in [([KPF_BUDDY, other], 1), ([other, KPF_BUDDY], 2)] {
                let pair = seen(&pages, 64);
                assert_eq!(pair.free & free, free, "{other:#x}");
                assert_eq!(
                    pair.certain & free != 0,
                    vouches && ORDERED,
                    "{other:#x}, page {free}"
                );
                assert_eq!(pair.certain & !pair.free, 0, "{other:#x}");
            }
        }
    }

    #[test]
    fn a_page_that_looks_free_and_in_use_at_once_is_never_certain() {
        for flag in (0..64).filter(|flag| ![3, 10].contains(flag)) {
            let pages = [KPF_BUDDY | 1 << flag, KPF_BUDDY];
            assert_eq!(seen(&pages, 0).free, 3, "flag {flag}");
            assert_eq!(seen(&pages, 0).certain, 0, "flag {flag}");
        }
    }

    #[test]
    fn pairs_are_aligned_in_memory_not_in_what_is_read() {
        assert_eq!(seen(&[KPF_BUDDY; 64], 7).certain, 0);
        assert_eq!(seen(&[0, KPF_BUDDY, KPF_BUDDY, 0], 0).certain, 0);
    }

    #[test]
    fn the_last_page_alone_is_not_certain() {
        for count in 1..=64 {
            let all = seen(&vec![KPF_BUDDY; count], 0);
            assert_eq!(all.free, u64::MAX >> (64 - count), "{count} pages");
            let pairs = all.free.count_ones() & !1;
            let certain = if ORDERED { pairs } else { 0 };
            assert_eq!(all.certain.count_ones(), certain, "{count} pages");
        }
    }
}
