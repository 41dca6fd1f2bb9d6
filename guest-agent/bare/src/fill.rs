// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first phase: the guest fills its memory and frees most of it again.

use core::sync::atomic::{AtomicU64, Ordering};

use spec::bare::{PageState, StatusWord};
use spec::stamp::Random;

use crate::allocator::{self, Allocator};
use crate::memory::Memory;
use crate::status;

/// Pages of a chunk. A chunk is freed or stays in use as a whole.
const CHUNK: u64 = 64;
/// In one of this many freed chunks, a single page stays in use.
const CHUNKS_A_SURVIVOR: u64 = 32;

/// Does this vCPU's share of stamping the first `pages` pages. In new memory all of them are free.
pub fn fill(memory: &Memory, pages: u64) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let start = NEXT.fetch_add(CHUNK, Ordering::Relaxed);
        if start >= pages {
            return;
        }
        let end = pages.min(start + CHUNK);
        for mut page in (start..end).filter_map(|index| memory.claim(index, PageState::Free)) {
            page.stamp();
            page.release(PageState::InUse);
        }
        status::add(StatusWord::Writes, end - start);
        status::add(StatusWord::InUse, end - start);
    }
}

/// Frees some of the first `filled` pages, until `keep` are in use. No other vCPU may work on them.
///
/// As in a system that has run for a while, most free pages are in long runs, with single pages in use among them, and
/// the reverse.
pub fn free_down_to(
    memory: &Memory,
    allocator: &mut Allocator<'_>,
    filled: u64,
    keep: u64,
    seed: u64,
) {
    allocator::count_free(memory.pages() - filled);
    let mut random = Random::new(seed);
    let chunks = filled.div_ceil(CHUNK);
    let mut kept = keep.div_ceil(CHUNK);
    for chunk in 0..chunks {
        // Selection sampling (Knuth, TAOCP 2, 3.4.2 S): exactly `kept` chunks, all choices equally likely.
        if random.below(chunks - chunk) < kept {
            kept -= 1;
            continue;
        }
        let start = chunk * CHUNK;
        let survivor = (random.below(CHUNKS_A_SURVIVOR) == 0).then(|| start + random.below(CHUNK));
        (start..filled.min(start + CHUNK))
            .filter(|&index| Some(index) != survivor)
            .filter_map(|index| memory.claim(index, PageState::InUse))
            .for_each(|page| allocator.free(page));
    }
    while status::get(StatusWord::InUse) > keep {
        let Some(page) = allocator.any_in_use() else {
            break;
        };
        allocator.free(page);
    }
}
