// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages' checksums on their way to the file. They are collected in memory and written many at once: the kernel lets nobody write
//! pages of the same file by direct I/O while something goes into its page cache.

use std::collections::BTreeMap;
use std::io;

use super::storage::Storage;

/// The checksums of 1024 pages.
const BLOCK_BYTES: usize = 4096;
const BLOCK_SLOTS: u64 = BLOCK_BYTES as u64 / 4;
/// Blocks that may be in memory: 64 MiB, for 64 GiB of pages.
const MOST_BLOCKS: usize = 16_384;
/// The most blocks that are written at once.
const MOST_AT_ONCE: usize = 256;

/// Checksums that are not in the file yet.
#[derive(Debug)]
pub(super) struct Checksums {
    /// Where the table of checksums is.
    table_at: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>,
    most: usize,
    /// Some are in the file: what is not in memory must be read before it is changed.
    written: bool,
}

impl Checksums {
    /// Those of the table at `table_at`.
    pub(super) fn new(table_at: u64) -> Self {
        Self {
            table_at,
            blocks: BTreeMap::new(),
            most: MOST_BLOCKS,
            written: false,
        }
    }

    /// The pages from `slot` on have the checksums `of_pages`.
    pub(super) fn set(
        &mut self,
        mut slot: u64,
        mut of_pages: &[u32],
        storage: &dyn Storage,
    ) -> io::Result<()> {
        while !of_pages.is_empty() {
            let (number, from) = (slot / BLOCK_SLOTS, slot % BLOCK_SLOTS);
            let count = of_pages.len().min((BLOCK_SLOTS - from) as usize);
            let (of_block, rest) = of_pages.split_at(count);
            let block = self.block(number, storage)?;
            let places = block[from as usize * 4..].chunks_exact_mut(4);
            for (place, checksum) in places.zip(of_block) {
                place.copy_from_slice(&checksum.to_le_bytes());
            }
            (slot, of_pages) = (slot + count as u64, rest);
        }
        Ok(())
    }

    /// Writes all that is in memory.
    pub(super) fn flush(&mut self, storage: &dyn Storage) -> io::Result<()> {
        let mut run = Vec::new();
        let mut first = 0;
        for (number, block) in std::mem::take(&mut self.blocks) {
            let follows = number == first + (run.len() / BLOCK_BYTES) as u64;
            if !run.is_empty() && (!follows || run.len() == MOST_AT_ONCE * BLOCK_BYTES) {
                storage.write(&run, self.at(first))?;
                run.clear();
            }
            if run.is_empty() {
                first = number;
            }
            run.extend_from_slice(&block[..]);
        }
        if !run.is_empty() {
            storage.write(&run, self.at(first))?;
        }
        self.written = true;
        Ok(())
    }

    /// Block `number`, in memory.
    fn block(&mut self, number: u64, storage: &dyn Storage) -> io::Result<&mut [u8; BLOCK_BYTES]> {
        if self.blocks.len() >= self.most && !self.blocks.contains_key(&number) {
            self.flush(storage)?;
        }
        let at = self.at(number);
        let read = || {
            let mut block = Box::new([0; BLOCK_BYTES]);
            if self.written {
                storage.read(&mut block[..], at)?;
            }
            Ok::<_, io::Error>(block)
        };
        use std::collections::btree_map::Entry;
        Ok(match self.blocks.entry(number) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(room) => room.insert(read()?),
        })
    }

    fn at(&self, number: u64) -> u64 {
        self.table_at + number * BLOCK_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use spec::stamp::Random;

    use super::super::direct::DirectIo;
    use super::super::partial::PartialFile;
    use super::*;

    #[test]
    fn every_checksum_reaches_the_file_however_few_blocks_fit_into_memory() {
        let folder = tempfile::tempdir().unwrap();
        let storage = PartialFile::create(&folder.path().join("a"), DirectIo::Off).unwrap();
        let slots = 40 * BLOCK_SLOTS;
        storage.expect(4096 + slots * 4).unwrap();
        let mut checksums = Checksums {
            most: 3,
            ..Checksums::new(4096)
        };
        let mut random = Random::new(1);
        let mut expected = vec![0u32; slots as usize];
        for _ in 0..500 {
            let slot = random.below(slots);
            let count = 1 + random.below((slots - slot).min(3000));
            let new: Vec<u32> = (0..count).map(|_| random.next() as u32).collect();
            checksums.set(slot, &new, &storage).unwrap();
            expected[slot as usize..][..new.len()].copy_from_slice(&new);
            assert!(checksums.blocks.len() <= 3);
        }
        checksums.flush(&storage).unwrap();
        let mut found = vec![0; expected.len() * 4];
        storage.read(&mut found, 4096).unwrap();
        let expected: Vec<u8> = expected.into_iter().flat_map(u32::to_le_bytes).collect();
        assert!(found == expected);
    }
}
