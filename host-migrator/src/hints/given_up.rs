// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads a page map of the device into a bitmap.
//!
//! Only its bits for the guest's memory are read, in pieces. So neither the claimed sizes nor the addresses of its
//! regions cost anything.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use spec::PageRange;
use spec::hint_map::word_masks;
use spec::page_map::{HEADER_BYTES, Header, PageMapError, REGION_BYTES, Region, Regions};

use crate::memory::bitmap::MigrationBitmap;
use crate::vm::hint_source::HintError;

/// More regions than any guest has. A map with more of them is not read.
const MOST_REGIONS: u64 = 4096;
/// Words that are read at once.
const PIECE: usize = 8192;

/// The pages of `memory` that are set in the map. `memory` is in ascending order. The map is in the first `bytes` bytes
/// of `file`, a memory file that cannot shrink.
///
/// # Errors
/// [`HintError`] if the map is invalid or has too many regions.
pub(super) fn read(
    file: OwnedFd,
    bytes: u64,
    memory: &[PageRange],
) -> Result<MigrationBitmap, HintError> {
    let file = File::from(file);
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, 0)?;
    let header = Header::from_bytes(&head).map_err(broken)?;
    let (Some(words), true) = (header.words_offset(), header.map_bytes() == Some(bytes)) else {
        return Err(HintError::Protocol(format!(
            "a page map of {} words and {} regions in {bytes} bytes",
            header.words, header.regions
        )));
    };
    if header.regions > MOST_REGIONS {
        return Err(HintError::Protocol(format!(
            "a page map of {} regions; the most are {MOST_REGIONS}",
            header.regions
        )));
    }
    let mut table = vec![0; header.regions as usize * REGION_BYTES];
    file.read_exact_at(&mut table, HEADER_BYTES as u64)?;
    let regions = Regions::parse(header, &table).map_err(broken)?;
    let map = Map { file, words };
    let bitmap = MigrationBitmap::new(memory.last().map_or(0, |region| region.end()));
    for region in regions.iter() {
        for part in memory {
            if let Some(part) = part.intersection(region.range()) {
                map.copy(region, part, &bitmap)?;
            }
        }
    }
    Ok(bitmap)
}

fn broken(error: PageMapError) -> HintError {
    HintError::Protocol(error.to_string())
}

/// The file of a map.
struct Map {
    file: File,
    /// Offset of its words.
    words: u64,
}

impl Map {
    /// Copies the bits of `part` of `region` into `bitmap`.
    fn copy(
        &self,
        region: Region,
        part: PageRange,
        bitmap: &MigrationBitmap,
    ) -> Result<(), HintError> {
        let mut bytes = Vec::new();
        let mut masks = word_masks(part).peekable();
        while let Some(first) = masks
            .peek()
            .and_then(|(index, _)| region.word_for(*index as u64))
        {
            let masks: Vec<_> = masks.by_ref().take(PIECE).collect();
            bytes.resize(masks.len() * 8, 0);
            self.file
                .read_exact_at(&mut bytes, self.words + first * 8)?;
            let (words, _) = bytes.as_chunks();
            for ((index, mask), word) in masks.into_iter().zip(words) {
                bitmap.merge(index, u64::from_le_bytes(*word) & mask);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    /// The header and the table of a map.
    fn head(regions: &[PageRange]) -> Vec<u8> {
        let regions: Vec<_> = Region::lay_out(regions.iter().copied()).collect();
        let mut bytes = Header::of(regions.iter().copied()).to_bytes().to_vec();
        regions
            .iter()
            .for_each(|region| bytes.extend(region.to_bytes()));
        bytes
    }

    fn map(regions: &[PageRange], words: &[u64]) -> Vec<u8> {
        let mut bytes = head(regions);
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn a_map_is_read_and_what_is_none_is_refused() {
        let content = map(&[range(0, 100)], &[5, 1 << 35]);
        let bytes = content.len() as u64;
        let map = read(file(&content).into(), bytes, &[range(0, 100)]).unwrap();
        assert_eq!((map.load(0), map.load(1), map.count()), (5, 1 << 35, 3));
        let smaller = read(file(&content).into(), bytes, &[range(0, 90)]).unwrap();
        assert_eq!(smaller.count(), 2);
        for claimed in [0, bytes - 1, bytes + 1, u64::MAX] {
            let result = read(file(&content).into(), claimed, &[range(0, 100)]);
            assert!(result.is_err(), "{claimed}");
        }
        let short = file(&content[..content.len() - 1]);
        assert!(read(short.into(), bytes, &[range(0, 100)]).is_err());
    }

    #[test]
    fn regions_of_the_device_and_of_the_migrator_need_not_be_the_same() {
        // The device has memory that is not guest memory, and one region that is two regions here.
        let theirs = [range(10, 30), range(40, 100), range(100_000, 20)];
        let content = map(&theirs, &[u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX]);
        let map = read(
            file(&content).into(),
            content.len() as u64,
            &[range(0, 20), range(30, 50), range(1000, 5)],
        )
        .unwrap();
        let set: Vec<_> = (0..2000).filter(|page| map.contains(*page)).collect();
        assert_eq!(set, (10..20).chain(30..80).collect::<Vec<_>>());
    }

    #[test]
    fn a_map_of_much_more_than_the_guest_has_is_read_where_the_guest_is() {
        // A map of 64 TiB, in a file of 2 GiB that has no block.
        let content = head(&[range(0, 1 << 34)]);
        let bytes = content.len() as u64 + (1 << 31);
        let file = file(&content);
        file.set_len(bytes).unwrap();
        let at = |page: u64| content.len() as u64 + page / 8;
        let last = (1 << 34) - 64;
        for page in [0, 64 * 64, last] {
            file.write_all_at(&[0xff], at(page)).unwrap();
        }
        let memory = [range(0, 100), range(last, 4)];
        let map = read(file.try_clone().unwrap().into(), bytes, &memory).unwrap();
        assert_eq!((map.load(0), map.load(64), map.count()), (0xff, 0, 12));
        assert_eq!(map.load((last / 64) as usize), 0xf);
    }

    #[test]
    fn very_many_regions_are_refused() {
        let regions: Vec<_> = (0..=MOST_REGIONS)
            .map(|index| range(index * 64, 1))
            .collect();
        let content = map(&regions, &vec![1; regions.len()]);
        let read = |content: &[u8]| read(file(content).into(), content.len() as u64, &regions);
        assert!(read(&content).is_err());
        let fewer = &regions[1..];
        let content = map(fewer, &vec![1; fewer.len()]);
        assert_eq!(read(&content).unwrap().count(), MOST_REGIONS);
    }
}
