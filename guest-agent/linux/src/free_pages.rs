// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads which pages are free from `/proc/kpageflags`, which has one 64-bit word of flags for each page.
//!
//! Pages that are doubtful after one read are read again ([`crate::page_flags`] says which, and why).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use spec::PageRange;
use spec::agent::MAX_MAP_PAGES;

use crate::page_flags::Seen;

/// Bytes of flags for each page.
const FLAGS: usize = 8;
/// Pages whose flags are read together. Their flags stay in the processor's cache until they are evaluated.
const PIECE: usize = 2048;

/// Reads page flags. It allocates all its memory at the start, and none while it reads.
#[derive(Debug)]
pub struct FreePages {
    file: File,
    flags: Vec<u8>,
    words: Vec<u64>,
}

impl FreePages {
    /// Opens the kernel's page flags.
    ///
    /// # Errors
    /// If the kernel lacks `CONFIG_PROC_PAGE_MONITOR`, or the process may not read the file (only root may).
    pub fn open() -> io::Result<Self> {
        Ok(Self::of(File::open("/proc/kpageflags")?))
    }

    /// Reads page flags from `file`, which has the layout of `/proc/kpageflags`.
    pub(crate) fn of(file: File) -> Self {
        Self {
            file,
            flags: vec![0; PIECE * FLAGS],
            words: vec![0; MAX_MAP_PAGES as usize / 64],
        }
    }

    /// The pages of `range` that are free now, and their number: bit `p % 64` of word `p / 64`, counted from the range's
    /// first page. At most [`MAX_MAP_PAGES`] pages are read.
    ///
    /// # Errors
    /// The kernel's. Pages without flags count as not free.
    pub fn read(&mut self, range: PageRange) -> io::Result<(&[u64], u64)> {
        let pages = range.count().min(u64::from(MAX_MAP_PAGES)) as usize;
        let words = &mut self.words[..pages.div_ceil(64)];
        words.fill(0);
        for (index, words) in words.chunks_mut(PIECE / 64).enumerate() {
            let skipped = index * PIECE;
            let length = (pages - skipped).min(PIECE) * FLAGS;
            let first = range.first() + skipped as u64;
            let flags = read_at(&self.file, &mut self.flags[..length], first)?;
            for (index, (word, flags)) in words.iter_mut().zip(flags.chunks(64)).enumerate() {
                let first = first + index as u64 * 64;
                let Seen { free, certain } = Seen::new(flags, first);
                *word = certain | look_again(&self.file, free & !certain, first)?;
            }
        }
        let free = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok((words, free))
    }
}

/// Reads the pages `doubtful`, counted from `first`, again, and returns those that look free again.
fn look_again(file: &File, doubtful: u64, first: u64) -> io::Result<u64> {
    if doubtful == 0 {
        return Ok(0);
    }
    let (low, high) = (doubtful.trailing_zeros(), 64 - doubtful.leading_zeros());
    let mut flags = [0; 64 * FLAGS];
    let flags = &mut flags[..(high - low) as usize * FLAGS];
    let first = first + u64::from(low);
    let seen = Seen::new(read_at(file, flags, first)?, first);
    Ok(seen.free << low & doubtful)
}

/// Reads the flags of pages from `first` on. Returns fewer at the end of memory.
fn read_at<'a>(file: &File, flags: &'a mut [u8], first: u64) -> io::Result<&'a [[u8; FLAGS]]> {
    let mut filled = 0;
    while filled < flags.len() {
        let at = (first * FLAGS as u64) + filled as u64;
        match file.read_at(&mut flags[filled..], at) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(flags[..filled].as_chunks().0)
}

/// Splits `range` into parts that fit in a map.
pub fn parts(range: PageRange) -> impl Iterator<Item = PageRange> {
    let step = u64::from(MAX_MAP_PAGES);
    (range.first()..range.end())
        .step_by(MAX_MAP_PAGES as usize)
        .filter_map(move |first| PageRange::new(first, step.min(range.end() - first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_range_once() {
        let range = PageRange::new(5, 2 * u64::from(MAX_MAP_PAGES) + 1).unwrap();
        let parts: Vec<PageRange> = parts(range).collect();
        assert_eq!(parts.len(), 3);
        assert!(parts.windows(2).all(|two| two[0].end() == two[1].first()));
        assert_eq!((parts[0].first(), parts[2].end()), (5, range.end()));
    }

    const FREE: u64 = 1 << 10;

    fn file_of(flags: impl Iterator<Item = u64>) -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = flags.flat_map(u64::to_ne_bytes).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    #[test]
    fn free_pages_are_reported_wherever_the_range_begins_and_none_past_the_end_of_memory() {
        let is_free = |page: u64| page.is_power_of_two() || page % 100 < 40;
        let memory = 3 * PIECE as u64 + 77;
        let mut pages = FreePages::of(file_of(
            (0..memory).map(|page| u64::from(is_free(page)) * FREE),
        ));
        for (first, count) in [
            (0, memory),
            (64, 100),
            (1, memory + 500),
            (6143, 2),
            (1 << 40, 9),
        ] {
            let (words, free) = pages.read(PageRange::new(first, count).unwrap()).unwrap();
            let told: Vec<u64> = (0..count)
                .filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 == 1)
                .map(|page| first + page)
                .collect();
            let expected: Vec<u64> = (first..first + count)
                .filter(|page| *page < memory && is_free(*page))
                .collect();
            assert_eq!(told, expected, "{count} from {first}");
            assert_eq!(free, expected.len() as u64);
        }
    }

    #[test]
    fn a_doubtful_page_is_reported_only_if_it_is_free_twice() {
        let file = file_of((0..100).map(|page| if page == 65 { 0 } else { FREE }));
        assert_eq!(look_again(&file, 0b1011, 64).unwrap(), 0b1001);
        assert_eq!(look_again(&file, 1 << 63, 0).unwrap(), 1 << 63);
        assert_eq!(look_again(&file, u64::MAX, 64).unwrap(), (1 << 36) - 1 - 2);
        assert_eq!(look_again(&file, 0, 64).unwrap(), 0);
    }
}
