// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The oracle: is the destination's memory right?
//!
//! After the hand-over the source still has the guest's memory, unchanged. A page of the destination is right if
//! it equals the source's page. It is also right if it was skipped as free, reads as zero, and the guest does not
//! use it; the bare guest keeps a table of page states, so only there is the last condition checked. Every other
//! page is wrong.

use host_migrator::{GuestRam, MigrationBitmap, RamError};
use spec::bare::{PageState, STATUS_MAGIC, StatusWord};
use spec::stamp::{PAGE_WORDS, Stamp};
use spec::{PAGE_SIZE, PageRange};

/// Pages compared at a time.
const CHUNK_PAGES: u64 = 256;
/// Wrong pages that are named one by one.
const MAX_EXAMPLES: usize = 16;

/// What the oracle found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Pages looked at: all of the guest's memory.
    pub pages_compared: u64,
    /// Pages that are wrong.
    pub pages_wrong: u64,
    /// Pages that may differ from the source: they were skipped as free and are zero.
    pub pages_given_up: u64,
    /// The first wrong pages.
    pub examples: Vec<WrongPage>,
}

/// A page that is wrong at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongPage {
    /// Its page frame number.
    pub pfn: u64,
    /// What is wrong with it.
    pub why: Wrong,
}

/// Why a page is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It was never declared free and differs from the source.
    Differs,
    /// It was skipped as free, and the guest uses it.
    InUse,
    /// It was skipped as free, and shows something other than zero.
    NotZero,
}

/// The memory could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// The two sides have different memory.
    #[error("source and destination have different memory layouts")]
    Layout,
    /// Memory could not be read.
    #[error("cannot read guest memory: {0}")]
    Ram(#[from] RamError),
    /// The bare guest's tables are not where its status page says.
    #[error("the guest's status page makes no sense: {0}")]
    Status(&'static str),
}

/// Compares every page. `skipped` are the pages whose content was not sent because of a hint; `truth` is
/// the guest's own account of its pages, if it keeps one.
///
/// # Errors
/// [`OracleError`] if memory cannot be compared.
pub fn compare(
    source: &GuestRam,
    destination: &GuestRam,
    skipped: &MigrationBitmap,
    truth: Option<&PageStates>,
) -> Result<Verdict, OracleError> {
    if source.regions() != destination.regions() {
        return Err(OracleError::Layout);
    }
    let mut verdict = Verdict::default();
    let mut ours = vec![0; (CHUNK_PAGES * PAGE_SIZE) as usize];
    let mut theirs = ours.clone();
    for chunk in source.regions().iter().flat_map(|region| chunks(*region)) {
        let bytes = chunk.bytes() as usize;
        source.read(chunk, &mut ours[..bytes])?;
        destination.read(chunk, &mut theirs[..bytes])?;
        verdict.pages_compared += chunk.count();
        if ours[..bytes] == theirs[..bytes] {
            continue;
        }
        let pages = ours[..bytes]
            .chunks(PAGE_SIZE as usize)
            .zip(theirs.chunks(PAGE_SIZE as usize));
        for (pfn, (ours, theirs)) in (chunk.first()..).zip(pages) {
            if ours == theirs {
                continue;
            }
            let used = || truth.is_some_and(|truth| truth.uses(pfn, ours));
            match judge(theirs, skipped.contains(pfn), used) {
                None => verdict.pages_given_up += 1,
                Some(why) => {
                    verdict.pages_wrong += 1;
                    if verdict.examples.len() < MAX_EXAMPLES {
                        verdict.examples.push(WrongPage { pfn, why });
                    }
                }
            }
        }
    }
    Ok(verdict)
}

/// Checks memory that was not sent but lent: every page that the guest uses has the version that the guest last wrote. Without
/// the guest's own account (`truth`) there is nothing to compare with.
///
/// # Errors
/// [`OracleError`] if memory cannot be read.
pub fn check_lent(ram: &GuestRam, truth: Option<&PageStates>) -> Result<Verdict, OracleError> {
    let mut verdict = Verdict::default();
    let mut content = vec![0; (CHUNK_PAGES * PAGE_SIZE) as usize];
    for chunk in ram.regions().iter().flat_map(|region| chunks(*region)) {
        let bytes = chunk.bytes() as usize;
        ram.read(chunk, &mut content[..bytes])?;
        verdict.pages_compared += chunk.count();
        let pages = content[..bytes].chunks(PAGE_SIZE as usize);
        for (pfn, page) in (chunk.first()..).zip(pages) {
            if truth.is_some_and(|truth| truth.contradicts(pfn, page)) {
                verdict.pages_wrong += 1;
                if verdict.examples.len() < MAX_EXAMPLES {
                    let why = Wrong::Differs;
                    verdict.examples.push(WrongPage { pfn, why });
                }
            }
        }
    }
    Ok(verdict)
}

/// What is wrong with a page that differs from the source's; `None` if it may differ.
fn judge(theirs: &[u8], skipped: bool, used: impl FnOnce() -> bool) -> Option<Wrong> {
    if !skipped {
        Some(Wrong::Differs)
    } else if used() {
        Some(Wrong::InUse)
    } else if theirs.iter().any(|byte| *byte != 0) {
        Some(Wrong::NotZero)
    } else {
        None
    }
}

fn chunks(region: PageRange) -> impl Iterator<Item = PageRange> {
    (region.first()..region.end())
        .step_by(CHUNK_PAGES as usize)
        .filter_map(move |first| PageRange::new(first, CHUNK_PAGES.min(region.end() - first)))
}

/// The bare guest's own account of its pages, read from its frozen memory.
#[derive(Debug)]
pub struct PageStates {
    states: Vec<u8>,
    versions: Vec<u8>,
    first: u64,
    low_end: u64,
    high_start: u64,
}

impl PageStates {
    /// Reads the tables that the status page points to.
    ///
    /// # Errors
    /// [`OracleError::Status`] if the guest is not up, or its tables are not in its memory.
    pub fn read(ram: &GuestRam) -> Result<Self, OracleError> {
        let word = |which: StatusWord| read_word(ram, which.gpa());
        if word(StatusWord::Magic)? != STATUS_MAGIC {
            return Err(OracleError::Status("no magic word"));
        }
        let (table, pages) = (word(StatusWord::StateTable)?, word(StatusWord::Pages)?);
        if pages > ram.pages() {
            return Err(OracleError::Status("more pages than there is memory"));
        }
        let states = read_bytes(ram, table, pages)?;
        let versions = read_bytes(ram, word(StatusWord::VersionTable)?, pages * 4)?;
        let low_end = ram.regions().first().map_or(0, |region| region.end());
        let high_start = ram
            .regions()
            .get(1)
            .map_or(low_end, |region| region.first());
        Ok(Self {
            states,
            versions,
            first: word(StatusWord::FirstPage)?,
            low_end,
            high_start,
        })
    }

    /// Whether the guest uses page `pfn`, which has `content`. An allocated page that still has the content with which
    /// it was freed is not in use yet: the guest has not written to it.
    pub fn uses(&self, pfn: u64, content: &[u8]) -> bool {
        match self.state(pfn) {
            Some(PageState::InUse | PageState::Busy) => true,
            Some(PageState::Taken) => !self.holds_its_last_stamp(pfn, content),
            Some(PageState::Free | PageState::Held) | None => false,
        }
    }

    /// Whether page `pfn`, which has `content`, should have another version. (One that is being written may have any.)
    fn contradicts(&self, pfn: u64, content: &[u8]) -> bool {
        self.state(pfn) == Some(PageState::InUse) && !self.holds_its_last_stamp(pfn, content)
    }

    fn holds_its_last_stamp(&self, pfn: u64, content: &[u8]) -> bool {
        let (words, _) = content.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let version = (self.index(pfn)).and_then(|index| self.versions.as_chunks().0.get(index));
        let (Ok(page), Some(version)) = (<&[u64; PAGE_WORDS]>::try_from(&words[..]), version)
        else {
            return false;
        };
        let stamp = Stamp {
            address: pfn * PAGE_SIZE,
            version: u32::from_le_bytes(*version).into(),
        };
        stamp.check(Stamp::seed_of(page), page).is_ok()
    }

    /// Where page `pfn` is in the tables.
    fn index(&self, pfn: u64) -> Option<usize> {
        let index = if pfn < self.low_end {
            pfn.checked_sub(self.first)?
        } else {
            pfn.checked_sub(self.high_start)? + self.low_end.checked_sub(self.first)?
        };
        usize::try_from(index).ok()
    }

    /// The state of page `pfn`; `None` if the guest's allocator does not manage the page, or if its state is unknown.
    /// Such a page is compared like any other.
    fn state(&self, pfn: u64) -> Option<PageState> {
        let state = self.states.get(self.index(pfn)?)?;
        [
            PageState::Free,
            PageState::Held,
            PageState::InUse,
            PageState::Busy,
            PageState::Taken,
        ]
        .into_iter()
        .find(|known| *known as u8 == *state)
    }
}

/// The 64-bit word at `gpa`.
fn read_word(ram: &GuestRam, gpa: u64) -> Result<u64, OracleError> {
    let bytes = read_bytes(ram, gpa, 8)?;
    let mut word = [0; 8];
    word.copy_from_slice(&bytes);
    Ok(u64::from_le_bytes(word))
}

/// `len` bytes at `gpa`, which need not be aligned.
fn read_bytes(ram: &GuestRam, gpa: u64, len: u64) -> Result<Vec<u8>, OracleError> {
    let outside = OracleError::Status("a table outside memory");
    let end = gpa
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
    let start = gpa / PAGE_SIZE * PAGE_SIZE;
    let Some(range) = end.and_then(|end| PageRange::inside(start, end - start)) else {
        return Err(outside);
    };
    let inside = ram
        .regions()
        .iter()
        .any(|region| region.intersection(range) == Some(range));
    if !inside {
        return Err(outside);
    }
    let mut bytes = vec![0; range.bytes() as usize];
    ram.read(range, &mut bytes)?;
    let skip = (gpa - start) as usize;
    Ok(bytes[skip..skip + len as usize].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_migrator::RamRegion;

    const PAGES: u64 = 600;

    fn ram() -> GuestRam {
        let region = RamRegion::new(0, PAGES * PAGE_SIZE).unwrap();
        GuestRam::map(vec![region]).unwrap()
    }

    fn fill(ram: &GuestRam, pfn: u64, byte: u8) {
        let page = vec![byte; PAGE_SIZE as usize];
        ram.write(PageRange::new(pfn, 1).unwrap(), &page).unwrap();
    }

    fn put_word(ram: &GuestRam, gpa: u64, word: u64) {
        let range = PageRange::inside(gpa / PAGE_SIZE * PAGE_SIZE, PAGE_SIZE).unwrap();
        let mut page = vec![0; PAGE_SIZE as usize];
        ram.read(range, &mut page).unwrap();
        let at = (gpa % PAGE_SIZE) as usize;
        page[at..at + 8].copy_from_slice(&word.to_le_bytes());
        ram.write(range, &page).unwrap();
    }

    fn with_skipped(pfns: &[u64]) -> MigrationBitmap {
        let map = MigrationBitmap::new(PAGES);
        for pfn in pfns {
            map.insert(PageRange::new(*pfn, 1).unwrap());
        }
        map
    }

    #[test]
    fn equal_memory_is_right_and_every_page_is_counted() {
        let (a, b) = (ram(), ram());
        fill(&a, 300, 7);
        fill(&b, 300, 7);
        let verdict = compare(&a, &b, &with_skipped(&[]), None).unwrap();
        assert_eq!((verdict.pages_compared, verdict.pages_wrong), (PAGES, 0));
    }

    #[test]
    fn a_page_may_differ_only_if_it_was_skipped_and_reads_as_zero() {
        let (a, b) = (ram(), ram());
        for pfn in [100, 200, 599] {
            fill(&a, pfn, 7);
        }
        fill(&b, 599, 8);
        let verdict = compare(&a, &b, &with_skipped(&[200, 599]), None).unwrap();
        assert_eq!((verdict.pages_wrong, verdict.pages_given_up), (2, 1));
        assert_eq!(
            verdict.examples,
            [
                WrongPage {
                    pfn: 100,
                    why: Wrong::Differs
                },
                WrongPage {
                    pfn: 599,
                    why: Wrong::NotZero
                }
            ]
        );
    }

    #[test]
    fn a_skipped_page_that_the_guest_uses_is_wrong() {
        let (a, b) = (ram(), ram());
        put_word(&a, StatusWord::Magic.gpa(), STATUS_MAGIC);
        put_word(&a, StatusWord::StateTable.gpa(), 20 * PAGE_SIZE + 5);
        put_word(&a, StatusWord::FirstPage.gpa(), 100);
        put_word(&a, StatusWord::Pages.gpa(), 400);
        let states = u64::from_le_bytes([0, 1, PageState::InUse as u8, 0, 0, 0, 0, 0]);
        put_word(&a, 20 * PAGE_SIZE + 5, states);
        for pfn in [8, 20] {
            let range = PageRange::new(pfn, 1).unwrap();
            let mut page = vec![0; PAGE_SIZE as usize];
            a.read(range, &mut page).unwrap();
            b.write(range, &page).unwrap();
        }
        fill(&a, 101, 1);
        fill(&a, 102, 1);
        let truth = PageStates::read(&a).unwrap();
        let verdict = compare(&a, &b, &with_skipped(&[101, 102]), Some(&truth)).unwrap();
        assert_eq!(
            verdict.examples,
            [WrongPage {
                pfn: 102,
                why: Wrong::InUse
            }]
        );
        assert_eq!(verdict.pages_given_up, 1);
    }

    #[test]
    fn a_page_that_was_taken_is_used_once_it_is_written() {
        let a = ram();
        put_word(&a, StatusWord::Magic.gpa(), STATUS_MAGIC);
        put_word(&a, StatusWord::StateTable.gpa(), 20 * PAGE_SIZE);
        put_word(&a, StatusWord::VersionTable.gpa(), 21 * PAGE_SIZE);
        put_word(&a, StatusWord::FirstPage.gpa(), 100);
        put_word(&a, StatusWord::Pages.gpa(), 400);
        put_word(&a, 20 * PAGE_SIZE, PageState::Taken as u64);
        let last_version = 7;
        put_word(&a, 21 * PAGE_SIZE, last_version);
        let truth = PageStates::read(&a).unwrap();
        let stamped = |version| {
            let address = 100 * PAGE_SIZE;
            let mut page = [0; PAGE_WORDS];
            Stamp { address, version }.write(1, &mut page);
            page.map(u64::to_le_bytes).concat()
        };
        let (before, after) = (stamped(last_version), stamped(last_version + 1));
        assert!(!truth.uses(100, &before));
        assert!(truth.uses(100, &after));
        let half = [&after[..16], &before[16..]].concat();
        assert!(truth.uses(100, &half));
    }

    #[test]
    fn a_status_page_that_points_nowhere_is_an_error() {
        let a = ram();
        assert!(PageStates::read(&a).is_err());
        put_word(&a, StatusWord::Magic.gpa(), STATUS_MAGIC);
        put_word(&a, StatusWord::StateTable.gpa(), u64::MAX - 3);
        put_word(&a, StatusWord::Pages.gpa(), 400);
        assert!(PageStates::read(&a).is_err());
        put_word(&a, StatusWord::Pages.gpa(), u64::MAX);
        assert!(PageStates::read(&a).is_err());
    }
}
