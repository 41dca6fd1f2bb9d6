// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Leaves out the holes of the memory files before the first round, and counts them by source.
//!
//! A page is left out here only if it is a hole of its file after every page was armed. It then reads as zero, and every
//! later write is in a log. What the balloon device says about the page decides only which source is counted (and whether
//! that source is used), never whether the page may be left out.

use spec::hint_map::word_masks;
use spec::trace::Event;

use super::left_out::LeftOut;
use crate::memory::bitmap::runs_of_word;
use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::memory::holes::HoleBudget;
use crate::report::page_source::{PageSource, PageSources, PagesBySource};
use crate::report::trace::Trace;
use crate::rule::Tracker;

/// The most holes that are searched for: two seconds of work, in which the guest runs.
const MOST_HOLES: u64 = 1 << 20;

/// Clears the holes of `sources` in the bitmap and notes them as left out. Returns their number. Asks `go_on` from time
/// to time whether to go on.
pub(crate) fn leave_out(
    tracker: &mut Tracker<'_>,
    ram: &dyn GuestMemory,
    sources: PageSources,
    left_out: &LeftOut,
    trace: &Trace,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<PagesBySource, RamError> {
    let mut pages = PagesBySource::default();
    let of_holes = [PageSource::Holes, PageSource::Balloon, PageSource::Reported];
    let used = of_holes.map(|source| sources.contains(source));
    if used == [false; 3] {
        return Ok(pages);
    }
    let all_are_used = used == [true; 3];
    // Unused sources are asked, too: the pages that they gave up are not left out as mere holes.
    let given_up = tracker.given_up(PageSources::ALL);
    trace.record(Event::HolesAsked);
    let mut budget = HoleBudget {
        holes: MOST_HOLES,
        bytes: u64::MAX,
        go_on,
    };
    let bitmap = tracker.bitmap();
    let whole = ram.find_holes(&mut budget, &mut |hole| {
        if all_are_used {
            trace.record(Event::Hole(hole));
        }
        for (index, mask) in word_masks(hole) {
            for (used, (reason, bits)) in used.into_iter().zip(given_up.reasons(index, mask)) {
                if used && bits != 0 {
                    let cleared = bitmap.clear(index, bits);
                    pages.add(reason, left_out.note(index, cleared, reason));
                    if trace.is_on() && !all_are_used {
                        runs_of_word(index as u64 * 64, cleared)
                            .for_each(|run| trace.record(Event::Hole(run)));
                    }
                }
            }
        }
    })?;
    if !whole {
        log::info!("not all holes of guest memory were found; the others are read page by page");
    }
    Ok(pages)
}
