// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads the pages that nobody waits for, and gives way to those that somebody waits for.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use spec::{PAGE_SIZE, PageRange};

use super::error::PagingError;
use super::pager::{Origin, Pager, PagerError};
use super::prefault::Prefault;
use super::shared::Shared;
use crate::memory::bitmap::{Cursor, MigrationBitmap};
use crate::pace::Pace;

/// Pages that are read at once. A fault on one of them waits for all of them.
const MOST_PAGES: u32 = 16;
/// The same around a page of the list of pages to be loaded first: the next one may be elsewhere.
const TOGETHER: u32 = 4;
/// Pages of which the pager is told ahead.
const AHEAD: u64 = 2048;
/// How much less of a processor this thread gets than the guest.
const NICE: i32 = 10;
/// How often it looks whether faults are still being answered, and how often at most.
const GLANCE: Duration = Duration::from_micros(20);
const GLANCES: u32 = 100;
/// How long it waits while the kernel takes no pages.
const PAUSE: Duration = Duration::from_micros(100);
/// No burst makes up for more time than this.
const LARGEST_CREDIT: Duration = Duration::from_millis(20);

/// Loads until all is loaded, or the threads are to end.
pub(super) fn load(shared: &Shared) -> Result<(), PagingError> {
    // What a peer has comes by itself.
    let Origin::Pager(pager) = &shared.origin else {
        return Ok(());
    };
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        log::debug!("the loader runs with the guest's priority: {error}");
    }
    let mut content = vec![0; (u64::from(MOST_PAGES) * PAGE_SIZE) as usize];
    let damaged = MigrationBitmap::new(shared.missing.wanted().pages());
    let (mut pace, mut announced) = (Pace::new(LARGEST_CREDIT), 0);
    let mut cursor = Cursor::from_word(0);
    let mut first = shared.first.iter();
    // Where the walk is: a word, and the first of its pages that is not known to be damaged.
    let mut at: Option<(usize, u32)> = None;
    loop {
        let Some(prefault) = wait_until_wanted(shared) else {
            return Ok(());
        };
        give_way(shared);
        // Where the guest is, and else where the walk is.
        let near = shared.near.swap(u64::MAX, Ordering::Relaxed);
        let near = (near < shared.missing.wanted().pages())
            .then_some(((near / 64) as usize, (near % 64) as u32));
        let near = near.and_then(|(word, from)| shared.missing.claim(word, from, MOST_PAGES));
        let claimed = near.or_else(|| next_of(&mut first, shared));
        let is_near = claimed.is_some();
        let claimed = claimed.or_else(|| {
            while let Some((word, from)) = at.or_else(|| {
                let word = shared.missing.wanted().next(&mut cursor, |_| 0)?;
                Some((word, 0))
            }) {
                at = Some((word, from));
                let claimed = shared.missing.claim(word, from, MOST_PAGES);
                if claimed.is_some() {
                    return claimed;
                }
                at = None;
            }
            None
        });
        let Some(range) = claimed else {
            // What is left is damaged, or others have it.
            return Ok(());
        };
        if !is_near && range.end() > announced {
            announced = range.first() + AHEAD;
            let ahead = PageRange::new(range.first(), AHEAD);
            ahead.into_iter().for_each(|ahead| pager.will_read(ahead));
        }
        if !bring(shared, &**pager, range, &mut content, &damaged)? && !is_near {
            // What is damaged stays wanted, so that somebody who needs it hears of it. The walk goes on after it.
            at = at.map(|(word, _)| (word, (range.end() - word as u64 * 64) as u32));
        }
        shared.complete_if_nothing_is_missing();
        if let Prefault::BytesPerSecond(rate) = prefault {
            let mut wait = pace.after(Instant::now(), range.bytes(), rate.max(1) as f64);
            while !wait.is_zero() && !shared.has_ended() {
                let step = wait.min(Duration::from_millis(20));
                thread::sleep(step);
                wait -= step;
            }
        }
    }
}

/// Claims the next of the pages that are to be loaded first, with those behind it.
fn next_of(first: &mut std::slice::Iter<'_, u64>, shared: &Shared) -> Option<PageRange> {
    let pages = shared.missing.wanted().pages();
    first.find_map(|page| {
        let is_wanted = *page < pages && shared.missing.wanted().contains(*page);
        let (word, from) = ((page / 64) as usize, (page % 64) as u32);
        is_wanted.then(|| shared.missing.claim(word, from, TOGETHER))?
    })
}

/// Waits until pages are to be loaded. `None` if the threads are to end.
fn wait_until_wanted(shared: &Shared) -> Option<Prefault> {
    let mut prefault = shared.prefault.lock();
    while *prefault == Prefault::Off && !shared.has_ended() {
        shared.prefault_changed.wait(&mut prefault);
    }
    (!shared.has_ended()).then_some(*prefault)
}

/// Lets faults be answered first.
fn give_way(shared: &Shared) {
    for _ in 0..GLANCES {
        if shared.busy.load(Ordering::Acquire) == 0 {
            return;
        }
        thread::sleep(GLANCE);
    }
}

/// Places the pages of `range`, which were claimed. False if one of them cannot be had; it is then in `damaged`.
fn bring(
    shared: &Shared,
    pager: &dyn Pager,
    range: PageRange,
    content: &mut [u8],
    damaged: &MigrationBitmap,
) -> Result<bool, PagingError> {
    let mut place = |range: PageRange| -> Result<Result<(), PagerError>, PagingError> {
        let content = &mut content[..range.bytes() as usize];
        if let Err(error) = pager.read(range, content) {
            return Ok(Err(error));
        }
        // A thread that answers faults reads what was discarded.
        let mut refused = || {
            thread::sleep(PAUSE);
            Ok(())
        };
        shared.missing.place(range, content, &mut refused)?;
        shared.loaded.fetch_add(range.count(), Ordering::Relaxed);
        Ok(Ok(()))
    };
    if place(range)?.is_ok() {
        return Ok(true);
    }
    let mut all_right = true;
    for page in range.first()..range.end() {
        let Some(one) = PageRange::new(page, 1) else {
            continue;
        };
        if let Err(error) = place(one)? {
            all_right = false;
            if damaged.count() == 0 {
                log::error!("{error}; the guest runs until it needs this page");
            }
            damaged.insert(one);
            shared.damaged.store(damaged.count(), Ordering::Relaxed);
            shared.missing.want(one);
            // Somebody may have come for it meanwhile, and waits.
            shared.missing.wake_all(one)?;
        }
    }
    Ok(all_right)
}
