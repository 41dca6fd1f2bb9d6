// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A map of guest memory as a file: the pages that are hinted, ballooned or reported.
//!
//! It is written in pieces, so that the map of a very large guest does not hold up others, such as a migrator that
//! closes its epoch. Ranges without a set bit stay holes of the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use spec::PageRange;
use spec::control::{PageSet, Refusal, Reply};
use spec::hint_map::HintMap;
use spec::page_map::{Header, Region};

use super::busy;
use crate::memory::shared_map::SharedMap;
use crate::vhost_user::backend::Backend;

/// Words of the bitmap that are written at a time: a page of the file.
const CHUNK: u64 = 512;
/// Chunks of one piece: the bits of 32 GiB of guest memory.
const PIECE: usize = 256;

/// A map that is being written.
#[derive(Debug)]
pub(super) struct PageMapWriter {
    source: Source,
    file: MapFile,
    /// What is still to be written. The next range is at the end.
    left: Vec<Stretch>,
}

/// A contiguous range of words of the map.
#[derive(Clone, Debug)]
struct Stretch {
    /// Word `index` is about pages `64 * index ..`.
    indices: Range<u64>,
    /// The offset of these words in the file.
    offset: u64,
}

/// The source of the bits.
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
}

impl PageMapWriter {
    /// Begins the map of the pages of `set`.
    pub(super) fn begin(set: PageSet, backend: &Backend) -> Result<Self, Refusal> {
        let balloon = busy::balloon(backend)?;
        let source = match set {
            PageSet::Hinted => Source::Hinted(balloon.hinted().ok_or(Refusal::NoMap)?),
            PageSet::Ballooned => Source::Ballooned,
            PageSet::Reported => Source::Reported,
        };
        let regions = balloon.regions().to_vec();
        drop(balloon);
        let (file, left) = MapFile::new(&regions).map_err(without_resources)?;
        Ok(Self { source, file, left })
    }

    /// Writes a piece. Returns the answer if it was the last one.
    pub(super) fn go_on(&mut self, backend: &Backend) -> Option<Result<(Reply, OwnedFd), Refusal>> {
        let written = match &self.source {
            Source::Hinted(map) => self
                .file
                .write(&mut self.left, |index| map.load(index as usize).pages()),
            Source::Ballooned => {
                let mut balloon = match busy::balloon(backend) {
                    Ok(balloon) => balloon,
                    Err(refusal) => return Some(Err(refusal)),
                };
                balloon.notice_new_driver();
                let set = balloon.ballooned();
                self.file.write(&mut self.left, |index| set.word(index))
            }
            Source::Reported => {
                let balloon = match busy::balloon(backend) {
                    Ok(balloon) => balloon,
                    Err(refusal) => return Some(Err(refusal)),
                };
                let set = balloon.reported();
                self.file.write(&mut self.left, |index| set.word(index))
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
    /// A file for the map of `regions`, complete except for the bits, and the ranges of bits to write.
    fn new(regions: &[PageRange]) -> io::Result<(Self, Vec<Stretch>)> {
        let regions: Vec<_> = Region::lay_out(regions.iter().copied()).collect();
        let header = Header::of(regions.iter().copied());
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let bytes = header.map_bytes().ok_or_else(too_large)?;
        let words = header.words_offset().ok_or_else(too_large)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("page-map", flags)?);
        file.set_len(bytes)?;
        let mut head = header.to_bytes().to_vec();
        head.extend(regions.iter().flat_map(|region| region.to_bytes()));
        file.write_all_at(&head, 0)?;
        let stretch = |region: &Region| Stretch {
            indices: region.indices(),
            offset: words + region.first_word() * 8,
        };
        let left = regions.iter().rev().map(stretch).collect();
        Ok((Self { file, bytes }, left))
    }

    /// Writes a piece of what is `left`. `words` gives the bits of a word by its index.
    fn write(&self, left: &mut Vec<Stretch>, words: impl Fn(u64) -> u64) -> io::Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK as usize * 8);
        for _ in 0..PIECE {
            let Some(Stretch { indices, offset }) = left.last_mut() else {
                break;
            };
            let (first, next) = (indices.start, indices.end.min(indices.start + CHUNK));
            let at = *offset;
            (indices.start, *offset) = (next, at + (next - first) * 8);
            if indices.is_empty() {
                left.pop();
            }
            chunk.clear();
            chunk.extend((first..next).flat_map(|index| words(index).to_le_bytes()));
            if chunk.iter().any(|&byte| byte != 0) {
                self.file.write_all_at(&chunk, at)?;
            }
        }
        Ok(())
    }

    /// Seals the file against changes and returns it.
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

    /// Writes a whole map of `regions`. Returns the file, its size and the number of pieces.
    fn write(regions: &[PageRange], words: impl Fn(u64) -> u64) -> (File, u64, usize) {
        let (map, mut left) = MapFile::new(regions).unwrap();
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
        // The second region begins in the first one's last word, and ends in the middle of a word.
        let regions = [range(0, 70), range(100, 20), range(100_000, 64 * 2000)];
        let words = |index: u64| match index {
            1 => 0b11 | 1 << (110 - 64),
            index if index == 100_000 / 64 => u64::MAX,
            _ => 0,
        };
        let (mut file, bytes, _) = write(&regions, words);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, bytes);
        let map = PageMap::parse(&content).unwrap();
        assert_eq!(map.regions().collect::<Vec<_>>(), regions);
        for index in 0..4000 {
            // The last region begins in the middle of a word.
            let memory = if index == 100_000 / 64 {
                u64::MAX << (100_000 % 64)
            } else {
                u64::MAX
            };
            assert_eq!(
                map.word(index as usize),
                words(index) & memory,
                "word {index}"
            );
        }
        assert!(file.write_all_at(&[0], 0).is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn a_guest_high_up_in_the_address_space_costs_no_more_than_its_pages() {
        let high = range(1 << 36, 64);
        let asked = std::cell::Cell::new(0);
        let (file, bytes, _) = write(&[high], |_| {
            asked.set(asked.get() + 1);
            1
        });
        assert_eq!(asked.get(), 1);
        // The header, a region and a word.
        assert_eq!(bytes, 32 + 24 + 8);
        assert_eq!(file.metadata().unwrap().len(), bytes);
    }

    #[test]
    fn without_memory_the_map_is_empty() {
        let (mut file, ..) = write(&[], |_| 1);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(PageMap::parse(&content).unwrap().regions().count(), 0);
    }

    #[test]
    fn the_map_of_a_large_guest_is_written_in_pieces() {
        let words = PIECE as u64 * CHUNK * 3;
        let (mut file, bytes, pieces) = write(&[range(0, words * 64)], |index| index);
        assert_eq!(pieces, 3);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, bytes);
        let map = PageMap::parse(&content).unwrap();
        assert!((0..words).all(|index| map.word(index as usize) == index));
    }
}
