// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages go next, and as what: hinted, a hole, zero, or content.
//!
//! `Walk::step` claims pending pages and returns the next piece of work. Nothing here sends anything or reads a clock,
//! so a migration, a test and a simulation use the same walk.

pub(crate) mod batch;
pub mod hold_back;
pub(crate) mod left_out;
mod run_list;
pub(crate) mod untouched;
mod word;

use std::fmt;
use std::time::Duration;

use spec::hint_map::HintBits;
use spec::stream::Totals;
use spec::{PAGE_SIZE, PageRange};

use crate::memory::bitmap::{Cursor, runs_of_word};
use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::memory::page_buffer::PageBuffer;
use crate::report::page_source::{PagesBySource, Reason};
use crate::report::round_map::{Recorder, RoundMaps};
use crate::report::stats::RoundStats;
use crate::rule::{Claimed, Pass};
use batch::Batch;
use hold_back::{HoldBack, Outlook, Seen};
use left_out::LeftOut;
use run_list::RunList;
use word::Word;

/// A walk over the pending pages of a round, with the results of the rounds before.
pub struct Walk<'a> {
    ram: &'a dyn GuestMemory,
    /// Pages are tested for zeros; zero pages are not sent like others.
    find_zeros: bool,
    order: Order,
    /// Where the walk in this order is, the word that it has found there, and the word after the one that was claimed last.
    cursor: Cursor,
    found: Option<Next>,
    from: usize,
    /// Decides on waits for hints in this epoch; `None` if the guest is stopped.
    hold_back: Option<HoldBack>,
    word: Option<Word>,
    batch: Batch,
    zero: RunList,
    discard: RunList,
    /// The work that the last step returned. It has been sent by now.
    given: Option<Part>,
    /// Pages whose latest content was not sent, and why.
    left_out: LeftOut,
    maps: Recorder,
    round: RoundStats,
    /// Pages that the destination was told to make zero, in all rounds: hinted ones and others.
    discarded: u64,
    zeroed: u64,
}

/// What a step does next.
#[derive(Debug)]
pub enum Step<'w> {
    /// Send this before the next step.
    Send(Work<'w>),
    /// The next page is not known to be needed: wait a moment for hints.
    Wait,
    /// Nothing to send yet. The walk goes on.
    Look,
    /// No word is left. [`Walk::flush`] returns the work that was gathered.
    End,
}

/// A piece of work for a sink.
#[derive(Debug)]
pub enum Work<'w> {
    /// Pages with content. A sink may take the buffer and leave an empty one.
    Pages(&'w mut PageBuffer),
    /// Pages that are zero and of which the destination has other content.
    Zero(&'w [PageRange]),
    /// Hinted pages whose content the destination has.
    Discard(&'w [PageRange]),
}

/// What the caller knows at a step.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time since the epoch was opened. It never decreases.
    pub now: Duration,
    /// Pages a second that the connection takes.
    pub pages_per_second: f64,
    /// About how many bytes may be sent at once.
    pub section_bytes: u64,
    /// The most words of 64 pages that this step may claim.
    pub words: u64,
}

/// Which pages are looked at now, by rising address.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// Those that were not free in the epoch before.
    Needed,
    /// All that are left.
    All,
}

#[derive(Clone, Copy)]
enum Part {
    Pages,
    Zero,
    Discard,
}

impl fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk")
            .field("order", &self.order)
            .field("round", &self.round)
            .finish_non_exhaustive()
    }
}

impl<'a> Walk<'a> {
    /// A walk over `ram`. With `find_zeros`, zero pages are found.
    pub fn new(ram: &'a dyn GuestMemory, find_zeros: bool) -> Self {
        let pages = ram.layout().bitmap_pages();
        Self::with_left_out(ram, find_zeros, LeftOut::new(pages))
    }

    /// As [`Walk::new`]. The pages in `left_out` are already left out.
    pub(crate) fn with_left_out(
        ram: &'a dyn GuestMemory,
        find_zeros: bool,
        left_out: LeftOut,
    ) -> Self {
        Self {
            ram,
            find_zeros,
            order: Order::All,
            cursor: Cursor::from_word(0),
            found: None,
            from: 0,
            hold_back: None,
            word: None,
            batch: Batch::new(),
            zero: RunList::default(),
            discard: RunList::default(),
            given: None,
            left_out,
            maps: Recorder::default(),
            round: RoundStats::default(),
            discarded: 0,
            zeroed: 0,
        }
    }

    /// Keeps a map of each round from now on.
    pub(crate) fn record_maps(&mut self, maps: Recorder) {
        self.maps = maps;
    }

    /// Begins round `round`, in which `pending` pages are to be sent.
    pub fn begin_round(&mut self, round: u32, pending: u64) {
        self.round = RoundStats {
            round,
            pending_before: pending,
            ..RoundStats::default()
        };
        self.maps.begin(round);
    }

    /// Begins to walk while the guest runs. Pages that were free in the last epoch, and are pending because they were
    /// used for a while, come last. About `section_bytes` are sent at once.
    pub fn begin(&mut self, outlook: Outlook, section_bytes: u64) {
        self.begin_order(Order::Needed);
        self.batch.set_most(section_bytes / PAGE_SIZE);
        self.epoch_opened(outlook);
    }

    /// Another epoch was opened in the middle of the walk.
    pub fn epoch_opened(&mut self, outlook: Outlook) {
        self.hold_back = Some(HoldBack::new(outlook));
        // The harvest may have brought pages between the last word and the next.
        self.go_on_from(self.from);
    }

    /// Begins to walk while the guest is stopped. It waits for no hints.
    pub fn begin_rest(&mut self) {
        self.begin_order(Order::All);
        self.batch.set_most(u64::MAX);
        self.hold_back = None;
    }

    /// The next piece of work in `pass`.
    ///
    /// # Errors
    /// [`RamError`] if guest memory cannot be read.
    pub fn step(&mut self, pass: &Pass<'_>, moment: Moment) -> Result<Step<'_>, RamError> {
        self.take_given();
        for _ in 0..moment.words {
            if !self.finish_word(pass)? {
                return Ok(Step::Send(self.give(Part::Pages)));
            }
            if self.zero.is_full(moment.section_bytes) {
                return Ok(Step::Send(self.give(Part::Zero)));
            }
            if self.discard.is_full(moment.section_bytes) {
                return Ok(Step::Send(self.give(Part::Discard)));
            }
            let Some(next) = self.next(pass) else {
                return Ok(Step::End);
            };
            if next.may_wait && self.is_to_wait(pass, next.index, moment) {
                self.found = Some(next);
                // What is known to be needed does not wait.
                return Ok(match self.batch.pages() {
                    0 => Step::Wait,
                    _ => Step::Send(self.give(Part::Pages)),
                });
            }
            self.claim(pass, next);
        }
        Ok(Step::Look)
    }

    /// What has been claimed and was not given out yet, piece by piece.
    ///
    /// # Errors
    /// [`RamError`] if guest memory cannot be read.
    pub fn flush(&mut self, pass: &Pass<'_>) -> Result<Option<Work<'_>>, RamError> {
        self.take_given();
        let whole = self.finish_word(pass)?;
        let part = if !whole || self.batch.pages() > 0 {
            Part::Pages
        } else if !self.zero.runs().is_empty() {
            Part::Zero
        } else if !self.discard.runs().is_empty() {
            Part::Discard
        } else {
            return Ok(None);
        };
        Ok(Some(self.give(part)))
    }

    /// The round so far.
    pub fn round(&self) -> &RoundStats {
        &self.round
    }

    /// As [`Walk::round`], for adding what the walk does not know.
    pub(crate) fn round_mut(&mut self) -> &mut RoundStats {
        &mut self.round
    }

    /// Pages of the round that were copied and tested.
    pub(crate) fn pages_looked_at(&self) -> u64 {
        let gathered = match self.given {
            // They are counted as sent.
            Some(Part::Pages) => 0,
            _ => self.batch.pages(),
        };
        self.round.pages_sent + gathered + self.round.pages_zero
    }

    /// The guest has `told` that pages of word `index` are free, after they were sent.
    pub(crate) fn note_late(&mut self, index: usize, told: HintBits) {
        self.maps.late(index, told.pages());
    }

    /// The guest has `told` that pages of word `index` are free, after they were sent: they are to become zero at the
    /// destination. True if no more fit before they are sent.
    pub(crate) fn discard_late(&mut self, index: usize, told: HintBits) -> bool {
        let pages = told.pages();
        // They were sent in this round and count so.
        let mut uncounted = PagesBySource::default();
        self.left_out.note_hinted(index, told, &mut uncounted);
        self.round.pages_discarded += count(pages);
        self.discarded += count(pages);
        for run in runs_of_word(index as u64 * 64, pages) {
            self.discard.push(run, self.ram);
        }
        self.discard.is_full(u64::MAX)
    }

    /// What the destination compares with what it received: `rounds` rounds and `pages_sent` pages with content. The
    /// bytes are counted while they are sent.
    pub(crate) fn stream_totals(&self, rounds: u32, pages_sent: u64) -> Totals {
        Totals {
            pages_sent,
            pages_zero: self.zeroed,
            pages_discarded: self.discarded,
            rounds: rounds.into(),
            bytes: 0,
        }
    }

    /// The pages `bits` of word `index` are sent after the hand-over, whatever they were left out for before.
    pub(crate) fn promised(&mut self, index: usize, bits: u64) {
        let back = &mut self.round.back_dirty_by_source;
        self.left_out.forget(index, bits, back);
    }

    /// Leaves out the pages of `pass` that are hinted, and nothing else. What the destination has of them is to be flushed.
    pub(crate) fn skip_hinted(&mut self, pass: &Pass<'_>) {
        let mut cursor = Cursor::from_word(0);
        while let Some(index) = pass.next(&mut cursor) {
            let mask = pass.hinted(index);
            if mask != 0 {
                let may_wait = false;
                self.claim(
                    pass,
                    Next {
                        index,
                        mask,
                        may_wait,
                    },
                );
            }
        }
    }

    /// The maps, if they were requested, and the pages whose latest content was not sent because of a hint.
    pub(crate) fn finish(mut self) -> (Option<RoundMaps>, LeftOut) {
        (self.maps.finish(), self.left_out)
    }

    fn begin_order(&mut self, order: Order) {
        self.order = order;
        self.go_on_from(0);
    }

    fn go_on_from(&mut self, word: usize) {
        (self.cursor, self.found, self.from) = (Cursor::from_word(word), None, word);
    }

    /// The next word, which is not claimed yet.
    fn next(&mut self, pass: &Pass<'_>) -> Option<Next> {
        if let Some(found) = self.found.take() {
            return Some(found);
        }
        if let Order::Needed = self.order {
            if let Some(free) = pass.free_before() {
                while let Some(index) = pass.next(&mut self.cursor) {
                    let mask = !free.load_marked(index);
                    // A word whose pending pages were all free is left for later.
                    if pass.bitmap().load(index) & mask != 0 {
                        let may_wait = false;
                        return Some(Next {
                            index,
                            mask,
                            may_wait,
                        });
                    }
                }
            }
            self.begin_order(Order::All);
        }
        Some(Next {
            index: pass.next(&mut self.cursor)?,
            mask: u64::MAX,
            may_wait: true,
        })
    }

    /// Whether to wait for hints before the pages of word `index`. Nothing is known of them, unless the guest has
    /// reported all of its free pages there.
    fn is_to_wait(&mut self, pass: &Pass<'_>, index: usize, moment: Moment) -> bool {
        let Some(hold_back) = &mut self.hold_back else {
            return false;
        };
        if pass.answered() / 64 > index as u64 {
            hold_back.goes_on(moment.now);
            return false;
        }
        let (phase, hinted) = pass.guest();
        let seen = Seen {
            now: moment.now,
            phase,
            hinted,
            pages_per_second: moment.pages_per_second,
        };
        let skipped = self.round.pages_hinted;
        hold_back.wait(seen, || skipped + pass.removed_from(index))
    }

    fn claim(&mut self, pass: &Pass<'_>, next: Next) {
        let Next { index, mask, .. } = next;
        self.from = index + 1;
        let claimed = pass.claim(index, mask);
        if claimed.pages == 0 {
            return;
        }
        let back = &mut self.round.back_dirty_by_source;
        self.left_out.forget(index, claimed.pages, back);
        if claimed.hinted.pages() != 0 {
            self.skip(index, &claimed);
        }
        if claimed.rest | claimed.holes != 0 {
            self.round.pages_written_before_copy += count(claimed.written);
            self.word = Some(Word::new(index, claimed));
        }
    }

    /// Leaves out the hinted pages of a word. Those of which the destination has content must become zero there.
    fn skip(&mut self, index: usize, claimed: &Claimed) {
        let (hinted, stale) = (claimed.hinted.pages(), claimed.stale);
        self.round.pages_hinted += count(hinted);
        let pages = &mut self.round.pages_by_source;
        self.left_out.note_hinted(index, claimed.hinted, pages);
        self.maps.skipped(index, hinted, stale);
        self.round.pages_discarded += count(stale);
        self.discarded += count(stale);
        for run in runs_of_word(index as u64 * 64, stale) {
            self.discard.push(run, self.ram);
        }
    }

    /// Copies what is left of the word that was claimed last. False if that is more than can be sent at once.
    fn finish_word(&mut self, pass: &Pass<'_>) -> Result<bool, RamError> {
        let Some(word) = &mut self.word else {
            return Ok(true);
        };
        if !word.copy(self.ram, &mut self.batch, self.find_zeros)? {
            return Ok(false);
        }
        let Word {
            index,
            claimed,
            zero,
            ..
        } = *word;
        self.word = None;
        let copied = pass.copied(index, &claimed, zero);
        let all_zero = zero | claimed.holes;
        self.round.pages_resent += count(copied.resent);
        self.maps.sent(index, claimed.rest & !zero, copied.resent);
        self.maps.zero(index, all_zero);
        self.round.pages_zero += count(all_zero);
        self.note_zeros(pass, index, zero, claimed.holes);
        // The destination's memory starts as zero, so only pages that were sent before need a record.
        self.zeroed += count(copied.stale);
        for run in runs_of_word(index as u64 * 64, copied.stale) {
            self.zero.push(run, self.ram);
        }
        Ok(true)
    }

    /// Counts pages of a word that were found to be zero, and those that were holes, for what made them so.
    fn note_zeros(&mut self, pass: &Pass<'_>, index: usize, found: u64, holes: u64) {
        let why = pass.reasons(index, holes);
        for (reason, bits) in why.chain([(Reason::Zero, found)]) {
            let pages = self.left_out.note(index, bits, reason);
            self.round.pages_by_source.add(reason, pages);
        }
    }

    fn give(&mut self, part: Part) -> Work<'_> {
        self.given = Some(part);
        match part {
            Part::Pages => {
                self.round.pages_sent += self.batch.pages();
                Work::Pages(self.batch.copies())
            }
            Part::Zero => Work::Zero(self.zero.runs()),
            Part::Discard => Work::Discard(self.discard.runs()),
        }
    }

    /// Takes out what the last step gave.
    fn take_given(&mut self) {
        match self.given.take() {
            Some(Part::Pages) => self.batch.clear(),
            Some(Part::Zero) => self.zero.clear(),
            Some(Part::Discard) => self.discard.clear(),
            None => {}
        }
    }
}

/// A word that is to be claimed next.
struct Next {
    index: usize,
    /// The pages of it.
    mask: u64,
    /// Nothing is known of these pages: they may wait for hints.
    may_wait: bool,
}

fn count(bits: u64) -> u64 {
    u64::from(bits.count_ones())
}
