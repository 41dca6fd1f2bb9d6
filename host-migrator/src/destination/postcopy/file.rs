// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source that has ended, and has left its half in a file: the file takes the place of the lanes. One thread reads the pages that
//! somebody waits for, another one the rest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use spec::file::{Half, Side};
use spec::hint_map::word_masks;
use spec::{PAGE_SIZE, PageRange};

use super::placing::Coming;
use crate::destination::error::ReceiveError;
use crate::memory::bitmap::{MigrationBitmap, runs_of_word};
use crate::memory::page_store::PageStore;
use crate::paging::{Pager, PagerError};
use crate::panics::text_of;
use crate::snapshot::{HalfFile, ReconcileError, check_all_is_there, check_match};
use crate::wire::SectionError;

/// Pages that are read at once, of those that nobody waits for.
const MOST_PAGES: u64 = 16;
/// After so many pages that cannot be had no more are tried.
const MOST_DAMAGED: u64 = 64;
/// How often it is looked whether the threads are to end.
const GLANCE: Duration = Duration::from_millis(20);
/// How long these give way to a page that somebody waits for, and how often at most.
const YIELD: Duration = Duration::from_micros(20);
const YIELDS: u32 = 50;

/// The half of a source, which has all that is missing.
#[derive(Debug)]
pub(super) struct SourceFile {
    half: HalfFile,
    /// The pages in it. The others that the source knew are zero.
    content: MigrationBitmap,
    /// What was missing, and no thread has claimed: a page that two threads place at once is taken for one that nobody has placed.
    unclaimed: MigrationBitmap,
}

impl SourceFile {
    /// Takes `half` if it is the source's, of the hand-over `ours`, and has all that is missing in `coming`.
    pub(super) fn new(half: HalfFile, ours: Half, coming: &Coming) -> Result<Self, ReceiveError> {
        if half.half().side != Side::Source {
            return Err(ReconcileError::Twice(Side::Destination).into());
        }
        check_match(&half, &ours, &coming.layout)?;
        let missing = MigrationBitmap::new(coming.layout.bitmap_pages());
        let runs = coming.paging.missing();
        runs.iter().for_each(|run| missing.insert(*run));
        check_all_is_there(Some(&half), &missing)?;
        let content = half.file().content()?;
        Ok(Self {
            half,
            content,
            unclaimed: missing,
        })
    }

    /// Brings those of the pages of `range`, at most [`MOST_PAGES`], that are missing in `coming` and that no other thread brings. After an
    /// error they can be brought again.
    fn bring(
        &self,
        range: PageRange,
        coming: &Coming,
        buffer: &mut [u8],
    ) -> Result<(), ReceiveError> {
        for (index, mask) in word_masks(range) {
            let base = index as u64 * 64;
            let claimed = self.unclaimed.clear(index, mask);
            let brought = self.bring_of_word(base, claimed, coming, buffer);
            if brought.is_err() {
                self.unclaimed.merge(index, claimed);
            }
            brought?;
        }
        Ok(())
    }

    /// Brings the missing pages of `claimed`, of the 64 pages from `base` on.
    fn bring_of_word(
        &self,
        base: u64,
        claimed: u64,
        coming: &Coming,
        buffer: &mut [u8],
    ) -> Result<(), ReceiveError> {
        let index = (base / 64) as usize;
        let missing = claimed & coming.paging.missing_in(index);
        let content = self.content.load(index);
        for run in runs_of_word(base, missing & !content) {
            coming.make_zero(run)?;
        }
        let runs = runs_of_word(base, missing & content);
        for piece in runs.flat_map(|run| coming.layout.pieces(run)) {
            let buffer = &mut buffer[..piece.bytes() as usize];
            let read = self.half.file().read(piece, buffer);
            read.map_err(|PagerError { reason }| ReceiveError::File(reason))?;
            coming.place(piece, buffer)?;
        }
        Ok(())
    }
}

/// A file that is read.
pub(super) struct FileLane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
struct Shared {
    file: SourceFile,
    coming: Arc<Coming>,
    is_over: AtomicBool,
    waited_for: Arc<AtomicUsize>,
    /// Why some pages cannot be had: the first reason.
    damage: Mutex<Option<String>>,
}

/// The way to ask for pages of the file.
#[derive(Clone, Debug)]
pub(super) struct FileRequests {
    ask: Sender<u64>,
    /// Pages that somebody waits for, and that are still to be read.
    waited_for: Arc<AtomicUsize>,
}

impl FileRequests {
    /// Somebody waits for `page`.
    pub(super) fn ask(&self, page: u64) {
        self.waited_for.fetch_add(1, Ordering::AcqRel);
        // A thread that has ended reads nothing, and the other one has said why.
        let _ = self.ask.send(page);
    }
}

impl FileLane {
    /// Begins to bring what is missing in `coming` from `file`. `breaks` is called with the reason if not all of it can be had. Returns the way
    /// to ask for pages, too.
    pub(super) fn start(
        file: SourceFile,
        coming: &Arc<Coming>,
        breaks: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<(Self, FileRequests), ReceiveError> {
        let (ask, asked) = channel();
        let waited_for = Arc::<AtomicUsize>::default();
        let shared = Arc::new(Shared {
            file,
            coming: Arc::clone(coming),
            is_over: AtomicBool::new(false),
            waited_for: Arc::clone(&waited_for),
            damage: Mutex::default(),
        });
        let mut lane = Self {
            shared,
            threads: Vec::new(),
        };
        lane.spawn("half, asked for", Arc::clone(&breaks), move |shared| {
            shared.answer(&asked)
        })?;
        lane.spawn("half, the rest", breaks, Shared::push)?;
        Ok((lane, FileRequests { ask, waited_for }))
    }

    fn spawn(
        &mut self,
        name: &str,
        breaks: Arc<dyn Fn(&str) + Send + Sync>,
        work: impl FnOnce(&Shared) -> Result<(), ReceiveError> + Send + 'static,
    ) -> Result<(), ReceiveError> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| work(&shared)));
            let done = done.unwrap_or_else(|panic| Err(ReceiveError::Panicked(text_of(&*panic))));
            if let Err(error) = done {
                breaks(&error.to_string());
            }
        });
        self.threads.push(thread.map_err(SectionError::from)?);
        Ok(())
    }

    /// Ends it, without waiting for that.
    pub(super) fn shut(&self) {
        self.shared.is_over.store(true, Ordering::Release);
    }

    /// Ends it. Nothing is placed afterwards.
    pub(super) fn end(self) {
        self.shut();
        for thread in self.threads {
            // Its panics end the lane.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire) || self.coming.paging.is_complete()
    }

    /// Brings the pages that are `asked` for. One that is damaged is waited for, until the other thread has brought the rest.
    fn answer(&self, asked: &Receiver<u64>) -> Result<(), ReceiveError> {
        let mut buffer = vec![0; PAGE_SIZE as usize];
        while !self.is_over() {
            let Ok(page) = asked.recv_timeout(GLANCE) else {
                continue;
            };
            let page = PageRange::new(page, 1);
            let brought = page.map(|page| self.bring(page, &mut buffer));
            self.waited_for.fetch_sub(1, Ordering::AcqRel);
            brought.transpose()?;
        }
        Ok(())
    }

    /// Brings all that is missing.
    fn push(&self) -> Result<(), ReceiveError> {
        let mut buffer = vec![0; (MOST_PAGES * PAGE_SIZE) as usize];
        let mut damaged = 0;
        for run in self.coming.paging.missing() {
            let mut first = run.first();
            while let Some(part) = PageRange::new(first, MOST_PAGES.min(run.end() - first)) {
                if self.is_over() || damaged >= MOST_DAMAGED {
                    break;
                }
                self.give_way();
                if !self.bring(part, &mut buffer)? {
                    for page in part.first()..part.end() {
                        let one = PageRange::new(page, 1);
                        let brought = one.map(|one| self.bring(one, &mut buffer)).transpose()?;
                        damaged += u64::from(brought == Some(false));
                    }
                }
                first = part.end();
            }
        }
        // The other thread may be at a page still.
        while !self.is_over() {
            if let Some(reason) = self.damage.lock().take() {
                return Err(ReceiveError::File(reason));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Brings `range`. False if it cannot be had.
    fn bring(&self, range: PageRange, buffer: &mut [u8]) -> Result<bool, ReceiveError> {
        match self.file.bring(range, &self.coming, buffer) {
            Ok(()) => Ok(true),
            Err(ReceiveError::File(reason)) => {
                log::warn!("{reason}");
                self.damage.lock().get_or_insert(reason);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets pages be read first that somebody waits for.
    fn give_way(&self) {
        for _ in 0..YIELDS {
            if self.waited_for.load(Ordering::Acquire) == 0 {
                return;
            }
            thread::sleep(YIELD);
        }
    }
}
