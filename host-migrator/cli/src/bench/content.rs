// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory that every arm moves.

use std::fs::{self, File};
use std::sync::Arc;

use host_migrator::{GuestRam, RamRegion};
use spec::stamp::{Random, mix};
use spec::{PAGE_SIZE, PageRange};

use super::BenchError;
use crate::args::ContentKind;
use crate::size::Size;

/// Pages that are filled, sent or compared at a time.
pub(super) const CHUNK_PAGES: u64 = 256;
/// The bytes of as many pages.
pub(super) const CHUNK_BYTES: usize = (CHUNK_PAGES * PAGE_SIZE) as usize;
/// What must be left of the machine's memory.
const SPARE_BYTES: u64 = 128 << 20;
const PAGE_WORDS: usize = PAGE_SIZE as usize / 8;
/// One word of so many is random in a compressible page.
const LINE_WORDS: usize = 4;

/// Filled memory, which nobody writes any more.
#[derive(Debug)]
pub(super) struct Content {
    ram: Arc<GuestRam>,
    file: File,
}

impl Content {
    /// Fills `size` of new memory with content of this `kind`.
    ///
    /// # Errors
    /// [`BenchError`] if the machine has too little memory for source and destination.
    pub(super) fn new(size: Size, kind: ContentKind, seed: u64) -> Result<Self, BenchError> {
        let needed = size.0.saturating_mul(2).saturating_add(SPARE_BYTES);
        let available = available_bytes()?;
        if needed > available {
            return Err(BenchError::NoMemory {
                needed: Size(needed),
                available: Size(available),
            });
        }
        let (ram, file) = new_memory(size.0)?;
        let mut bytes = Vec::with_capacity(CHUNK_BYTES);
        for chunk in chunks(ram.regions()[0]) {
            bytes.clear();
            for pfn in chunk.first()..chunk.end() {
                let words = page(kind, seed, pfn);
                bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            }
            ram.write(chunk, &bytes)?;
            // A guest that has run has touched its memory: the first arm must not pay for the page faults.
            ram.read(chunk, &mut bytes)?;
        }
        warm_up(size.0)?;
        let ram = Arc::new(ram);
        Ok(Self { ram, file })
    }

    /// The memory: one region from guest-physical 0.
    pub(super) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The memory file that it is.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes all pages zero but every `stride`th.
    ///
    /// # Errors
    /// [`BenchError`] if memory cannot be given back.
    pub(super) fn keep_every(&self, stride: u64) -> Result<(), BenchError> {
        let pages = self.pages();
        let between = (pages.first()..pages.end()).step_by(stride as usize);
        for first in between {
            let count = (stride - 1).min(pages.end() - first - 1);
            if let Some(gap) = PageRange::new(first + 1, count) {
                self.ram.discard(gap)?;
            }
        }
        Ok(())
    }

    /// All its pages.
    pub(super) fn pages(&self) -> PageRange {
        self.ram.regions()[0]
    }

    /// Its pages in `count` parts of about the same size. There are at least as many pages.
    pub(super) fn parts(&self, count: u16) -> Vec<PageRange> {
        let pages = self.pages().count();
        let border = |part: u64| (u128::from(pages) * u128::from(part) / u128::from(count)) as u64;
        (0..u64::from(count))
            .filter_map(|part| PageRange::new(border(part), border(part + 1) - border(part)))
            .collect()
    }
}

/// New memory without pages: one region from guest-physical 0, and its memory file.
pub(super) fn new_memory(bytes: u64) -> Result<(GuestRam, File), BenchError> {
    let failed = BenchError::io("cannot make memory");
    let made = RamRegion::new(0, bytes).and_then(|region| {
        let file = region.file.try_clone()?;
        Ok((region, file))
    });
    let (region, file) = made.map_err(failed)?;
    Ok((GuestRam::map(vec![region])?, file))
}

/// Takes memory for a destination and gives it back. On a virtual machine whose host gives it memory only when it is first
/// touched, the first arm would otherwise pay for that.
fn warm_up(bytes: u64) -> Result<(), BenchError> {
    let (ram, _file) = new_memory(bytes)?;
    let zeros = vec![0; CHUNK_BYTES];
    for chunk in ram.regions().iter().flat_map(|region| chunks(*region)) {
        ram.write(chunk, &zeros[..chunk.bytes() as usize])?;
    }
    Ok(())
}

/// `pages` in pieces of at most [`CHUNK_PAGES`].
pub(super) fn chunks(pages: PageRange) -> impl Iterator<Item = PageRange> {
    (pages.first()..pages.end())
        .step_by(CHUNK_PAGES as usize)
        .filter_map(move |first| PageRange::new(first, CHUNK_PAGES.min(pages.end() - first)))
}

/// The words of page `pfn`. None is a page of zeros.
fn page(kind: ContentKind, seed: u64, pfn: u64) -> [u64; PAGE_WORDS] {
    let mut random = Random::new(mix(seed) ^ pfn.wrapping_mul(0xd134_2543_de82_ef95));
    let same = random.next();
    let all_random = match kind {
        ContentKind::Random => true,
        ContentKind::Compressible => false,
        ContentKind::Mixed => same & 1 == 0,
    };
    std::array::from_fn(|index| {
        if all_random || index % LINE_WORDS == 0 {
            random.next()
        } else {
            same
        }
    })
}

/// What the machine can give without swapping, as the kernel estimates it.
fn available_bytes() -> Result<u64, BenchError> {
    let what = "cannot find out how much memory is free (/proc/meminfo)";
    let text = fs::read_to_string("/proc/meminfo").map_err(BenchError::io(what))?;
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes << 10).ok_or_else(|| {
        let unknown = std::io::Error::other("it does not say what is available");
        BenchError::io(what)(unknown)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_for_the_same_seed_and_no_page_is_zero() {
        for kind in [
            ContentKind::Random,
            ContentKind::Compressible,
            ContentKind::Mixed,
        ] {
            for pfn in 0..64 {
                let words = page(kind, 1, pfn);
                assert_eq!(words, page(kind, 1, pfn));
                assert_ne!(words, page(kind, 2, pfn));
                assert_ne!(words, page(kind, 1, pfn + 1));
                assert!(words.iter().any(|word| *word != 0));
            }
        }
    }

    #[test]
    fn three_words_of_four_are_the_same_in_a_compressible_page_and_some_mixed_pages_are_such() {
        let repeats = |kind, pfn| {
            let words = page(kind, 7, pfn);
            words.iter().filter(|word| **word == words[1]).count()
        };
        assert_eq!(repeats(ContentKind::Random, 3), 1);
        assert_eq!(repeats(ContentKind::Compressible, 3), PAGE_WORDS / 4 * 3);
        let mixed = (0..100).filter(|pfn| repeats(ContentKind::Mixed, *pfn) > 1);
        assert!((20..80).contains(&mixed.count()));
    }

    #[test]
    fn parts_have_every_page_once() {
        let (ram, file) = new_memory(37 * PAGE_SIZE).unwrap();
        let ram = Arc::new(ram);
        let content = Content { ram, file };
        for count in [1, 2, 7, 37] {
            let parts = content.parts(count);
            assert_eq!(parts.len(), usize::from(count));
            let mut next = 0;
            for part in parts {
                assert_eq!(part.first(), next);
                next = part.end();
            }
            assert_eq!(next, 37);
        }
    }
}
