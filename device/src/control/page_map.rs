// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A picture of guest memory as a file: what is hinted, in the balloon, or reported.
//!
//! It is written a piece at a time, so that the map of a very large guest does not hold up others, such as a migrator that
//! closes its epoch. Stretches without a bit stay holes of the file. Stretches without guest memory are skipped.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use spec::PageRange;
use spec::control::{PageSet, Refusal, Reply};
use spec::hint_map::HintMap;
use spec::page_map::{bitmap_offset, bytes_for, header, region};

use super::busy::PATIENCE;
use crate::memory::shared_map::SharedMap;
use crate::vhost_user::backend::Backend;

/// Words of the bitmap that are written at a time: a page of the file.
const CHUNK: usize = 512;
/// Chunks of one piece of work: the bits of 32 GiB of guest memory.
const PIECE: usize = 256;

/// A map that is being written.
#[derive(Debug)]
pub(super) struct PageMapWriter {
    source: Source,
    file: MapFile,
    /// What has not been written yet, as ranges of words.
    left: Vec<std::ops::Range<usize>>,
}

/// Where the bits come from.
#[derive(Debug)]
enum Source {
    Hinted(Arc<HintMap<SharedMap>>),
    Ballooned,
    Reported,
}

/// The file of a map.
#[derive(Debug)]
struct MapFile {
    file: File,
    bytes: u64,
    /// Where the bitmap begins.
    bitmap: u64,
}

impl PageMapWriter {
    /// Begins the map of the pages of `set`.
    pub(super) fn begin(set: PageSet, backend: &Backend) -> Result<Self, Refusal> {
        let balloon = backend.balloon_within(PATIENCE).ok_or(Refusal::Busy)?;
        let source = match set {
            PageSet::Hinted => Source::Hinted(balloon.hinted().ok_or(Refusal::NoMap)?),
            PageSet::Ballooned => Source::Ballooned,
            PageSet::Reported => Source::Reported,
        };
        let regions = balloon.regions().to_vec();
        drop(balloon);
        let words =
            |range: &PageRange| range.first() as usize / 64..range.end().div_ceil(64) as usize;
        Ok(Self {
            source,
            file: MapFile::new(&regions).map_err(without_resources)?,
            left: regions.iter().rev().map(words).collect(),
        })
    }

    /// Writes a piece; the answer, when it was the last one.
    pub(super) fn go_on(&mut self, backend: &Backend) -> Option<Result<(Reply, OwnedFd), Refusal>> {
        let written = match &self.source {
            Source::Hinted(map) => self
                .file
                .write(&mut self.left, |index| map.load(index).pages()),
            Source::Ballooned => {
                let Some(mut balloon) = backend.balloon_within(PATIENCE) else {
                    return Some(Err(Refusal::Busy));
                };
                balloon.notice_new_driver();
                let set = balloon.ballooned();
                self.file
                    .write(&mut self.left, |index| set.word(index as u64))
            }
            Source::Reported => {
                let Some(balloon) = backend.balloon_within(PATIENCE) else {
                    return Some(Err(Refusal::Busy));
                };
                let set = balloon.reported();
                self.file
                    .write(&mut self.left, |index| set.word(index as u64))
            }
        };
        if let Err(error) = written {
            return Some(Err(without_resources(error)));
        }
        if !self.left.is_empty() {
            return None;
        }
        let reply = Reply::PageMap {
            bytes: self.file.bytes,
        };
        Some(
            self.file
                .seal()
                .map(|fd| (reply, fd))
                .map_err(without_resources),
        )
    }
}

impl MapFile {
    /// A file for the map of `regions`, with everything but the bits.
    fn new(regions: &[PageRange]) -> io::Result<Self> {
        let pages = regions.last().map_or(0, |region| region.end());
        let count = regions.len() as u64;
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let bytes = bytes_for(pages, count).ok_or_else(too_large)?;
        let bitmap = bitmap_offset(count).ok_or_else(too_large)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("page-map", flags)?);
        file.set_len(bytes)?;
        let mut head = header(pages, count).to_vec();
        head.extend(regions.iter().flat_map(|&range| region(range)));
        file.write_all_at(&head, 0)?;
        Ok(Self {
            file,
            bytes,
            bitmap,
        })
    }

    /// Writes a piece of what is `left`, from its end on: the bits are `words`, by index.
    fn write(
        &self,
        left: &mut Vec<std::ops::Range<usize>>,
        words: impl Fn(usize) -> u64,
    ) -> io::Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK * 8);
        for _ in 0..PIECE {
            let Some(range) = left.last_mut() else {
                break;
            };
            let (first, next) = (range.start, range.end.min(range.start + CHUNK));
            range.start = next;
            if range.start == range.end {
                left.pop();
            }
            chunk.clear();
            chunk.extend((first..next).flat_map(|index| words(index).to_le_bytes()));
            if chunk.iter().any(|&byte| byte != 0) {
                self.file
                    .write_all_at(&chunk, self.bitmap + first as u64 * 8)?;
            }
        }
        Ok(())
    }

    /// The file, which nobody can change any more.
    fn seal(&self) -> io::Result<OwnedFd> {
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&self.file, seals)?;
        Ok(self.file.try_clone()?.into())
    }
}

fn without_resources(error: io::Error) -> Refusal {
    log::warn!("a page map cannot be made: {error}");
    Refusal::Resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::page_map::PageMap;
    use std::io::Read;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    /// Writes a whole map of `regions`, and says in how many pieces.
    fn write(regions: &[PageRange], words: impl Fn(usize) -> u64) -> (File, u64, usize) {
        let map = MapFile::new(regions).unwrap();
        let range =
            |range: &PageRange| range.first() as usize / 64..range.end().div_ceil(64) as usize;
        let mut left = regions.iter().rev().map(range).collect();
        let mut pieces = 0;
        loop {
            map.write(&mut left, &words).unwrap();
            pieces += 1;
            if left.is_empty() {
                return (map.seal().unwrap().into(), map.bytes, pieces);
            }
        }
    }

    #[test]
    fn the_file_holds_regions_and_bits_and_nobody_can_change_it() {
        let regions = [range(0, 70), range(100_000, 64 * 2000)];
        let words = |index: usize| match index {
            1 => 0b11,
            index if index == 100_000 / 64 => u64::MAX,
            _ => 0,
        };
        let (mut file, bytes, _) = write(&regions, words);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, bytes);
        let map = PageMap::parse(&content).unwrap();
        assert_eq!(map.regions().collect::<Vec<_>>(), regions);
        for index in 0..map.pages().div_ceil(64) as usize {
            assert_eq!(map.word(index), words(index), "word {index}");
        }
        assert!(file.write_all_at(&[0], 0).is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn a_guest_high_up_in_the_address_space_costs_no_more_than_its_pages() {
        let high = range(1 << 36, 64);
        let asked = std::cell::Cell::new(0);
        let (file, ..) = write(&[high], |_| {
            asked.set(asked.get() + 1);
            1
        });
        assert_eq!(asked.get(), 1);
        use std::os::unix::fs::MetadataExt;
        assert!(file.metadata().unwrap().blocks() * 512 <= 3 * 4096);
    }

    #[test]
    fn without_memory_the_map_is_empty() {
        let (mut file, ..) = write(&[], |_| 1);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(PageMap::parse(&content).unwrap().pages(), 0);
    }

    #[test]
    fn the_map_of_a_large_guest_is_written_in_pieces() {
        let words = PIECE * CHUNK * 3;
        let (mut file, bytes, pieces) = write(&[range(0, words as u64 * 64)], |index| index as u64);
        assert_eq!(pieces, 3);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, bytes);
        let map = PageMap::parse(&content).unwrap();
        assert!((0..words).all(|index| map.word(index) == index as u64));
    }
}
