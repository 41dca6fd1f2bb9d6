// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages are free: `/proc/kpageflags`, one 64-bit word of flags a page.
//!
//! The kernel takes no lock when it fills that file. It calls a page free (`KPF_BUDDY`) if it, or a page at the start of
//! an aligned block around it, is marked as free and big enough; mark and size are two reads. If that first page
//! is taken into use between them, the size is some other number, and a page of the block that has been in use all the
//! time looks free, once. A page in use that was told as free, and is not written again, would be lost. So pages are
//! told only if they look free twice: each look would have to meet that moment, at the same page.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use spec::PageRange;
use spec::agent::MAX_MAP_PAGES;

/// The page is in the kernel's free lists.
const KPF_BUDDY: u64 = 1 << 10;
/// Bytes of flags a page.
const FLAGS: usize = 8;
/// Pages that are looked at again together: as long as none of them is free there is nothing to look for.
const SECOND_LOOK: usize = 512;

/// How often the flags are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Looks {
    /// Once: for measurements only.
    Once,
    /// Twice, see the module.
    #[default]
    Twice,
}

/// Reads page flags. All memory that it needs is its own from the start: while it reads it allocates nothing.
#[derive(Debug)]
pub struct FreePages {
    file: File,
    looks: Looks,
    flags: Vec<u8>,
    words: Vec<u64>,
}

impl FreePages {
    /// Opens the kernel's page flags.
    ///
    /// # Errors
    /// If the kernel has none (`CONFIG_PROC_PAGE_MONITOR`) or the process may not read them (only root may).
    pub fn open(looks: Looks) -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/kpageflags")?,
            looks,
            flags: vec![0; MAX_MAP_PAGES as usize * FLAGS],
            words: vec![0; MAX_MAP_PAGES as usize / 64],
        })
    }

    /// The pages of `range` that are free now: bit `p % 64` of word `p / 64`, counted from its first page, and how
    /// many they are. Of a longer range than [`MAX_MAP_PAGES`] only so many pages are looked at.
    ///
    /// # Errors
    /// Whatever the kernel says. Pages that it does not know are not free.
    pub fn read(&mut self, range: PageRange) -> io::Result<(&[u64], u64)> {
        let pages = range.count().min(u64::from(MAX_MAP_PAGES)) as usize;
        let words = &mut self.words[..pages.div_ceil(64)];
        let flags = &mut self.flags[..pages * FLAGS];
        let known = read_at(&self.file, flags, range.first())?;
        for (word, flags) in words.iter_mut().zip(flags.chunks(64 * FLAGS)) {
            *word = free(flags);
        }
        mask_from(words, known);
        if self.looks == Looks::Twice {
            look_again(&self.file, flags, words, range.first())?;
        }
        let free = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok((words, free))
    }
}

/// Clears the bits of all pages that do not look free any more.
fn look_again(file: &File, flags: &mut [u8], words: &mut [u64], first: u64) -> io::Result<()> {
    let parts = words.chunks_mut(SECOND_LOOK / 64);
    for (index, words) in parts.enumerate() {
        if words.iter().all(|word| *word == 0) {
            continue;
        }
        let start = index * SECOND_LOOK;
        let length = flags.len().min(SECOND_LOOK * FLAGS);
        let flags = &mut flags[..length];
        let known = read_at(file, flags, first + start as u64)?;
        mask_from(words, known);
        for (word, flags) in words.iter_mut().zip(flags.chunks(64 * FLAGS)) {
            *word &= free(flags);
        }
    }
    Ok(())
}

/// Reads the flags of pages from `first` on and returns how many there are: the file ends with memory.
fn read_at(file: &File, flags: &mut [u8], first: u64) -> io::Result<usize> {
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
    Ok(filled / FLAGS)
}

/// A bit for each of up to 64 pages that is free.
fn free(flags: &[u8]) -> u64 {
    let (flags, _) = flags.as_chunks::<FLAGS>();
    let bits = flags
        .iter()
        .map(|flags| u64::from_le_bytes(*flags) & KPF_BUDDY);
    bits.enumerate()
        .fold(0, |word, (index, bit)| word | (bit / KPF_BUDDY) << index)
}

/// Clears the bits from page `known` on.
fn mask_from(words: &mut [u64], known: usize) {
    for word in words.iter_mut().skip(known.div_ceil(64)) {
        *word = 0;
    }
    if !known.is_multiple_of(64)
        && let Some(word) = words.get_mut(known / 64)
    {
        *word &= (1 << (known % 64)) - 1;
    }
}

/// `range` in parts that one map can hold.
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

    #[test]
    fn pages_past_the_end_of_memory_are_not_free() {
        let mut words = [u64::MAX; 3];
        mask_from(&mut words, 70);
        assert_eq!(words, [u64::MAX, 63, 0]);
        mask_from(&mut words, 64);
        assert_eq!(words, [u64::MAX, 0, 0]);
        mask_from(&mut words, 0);
        assert_eq!(words, [0; 3]);
    }

    #[test]
    fn only_pages_in_the_free_lists_count() {
        let flags = [KPF_BUDDY, 0, KPF_BUDDY | 1, !KPF_BUDDY]
            .map(u64::to_le_bytes)
            .concat();
        assert_eq!(free(&flags), 0b101);
    }
}
