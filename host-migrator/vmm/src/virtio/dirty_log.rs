// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The back end's dirty log: a memory file in which it sets bits (vhost-user SET_LOG_BASE).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host_migrator::memory::sealed_file::sealed_file;
use host_migrator::{DirtyLog, DirtyLogError, LogSource, MigrationBitmap};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::device::Device;
use super::error::VirtioError;

const WORD_BYTES: usize = size_of::<u64>();
/// The log is read in pieces of this size, a copy of which stays in the cache.
const CHUNK_BYTES: usize = 4096;

/// The log of one balloon's back end. Bit `p` of byte `p / 8` is page `p`, so that on this little-endian
/// machine a 64-bit word is a word of the migration bitmap.
#[derive(Debug)]
pub(super) struct BackEndLog {
    device: Arc<Device>,
    pages: u64,
    memory: Option<LogMemory>,
    /// The number of the back end that writes the log, while the log runs.
    writer: Option<u64>,
}

impl BackEndLog {
    pub(super) fn new(device: Arc<Device>) -> Self {
        Self {
            pages: device.ram().bitmap_pages(),
            device,
            memory: None,
            writer: None,
        }
    }
}

impl BackEndLog {
    /// A lost back end may only be slow, and write to a used ring once more.
    fn used_rings_into(&self, bitmap: &MigrationBitmap) -> u64 {
        let rings = self.device.used_rings();
        rings.iter().for_each(|pages| bitmap.insert(*pages));
        rings.iter().map(|pages| pages.count()).sum()
    }
}

impl DirtyLog for BackEndLog {
    fn source(&self) -> LogSource {
        LogSource::VhostUser
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        let action = "start";
        self.writer = Some(self.device.back_end());
        self.memory = None;
        if self.device.lost().is_some() {
            // The back end is lost. Its writes so far are in memory, all of which is still to be sent.
            return Ok(());
        }
        // A new file each time, because a back end may still set bits in the old one.
        let memory = LogMemory::new(self.pages).map_err(|error| failed(action, error))?;
        self.device
            .start_logging(&memory.file, memory.bytes)
            .map_err(|error| failed(action, io::Error::other(error)))?;
        self.memory = Some(memory);
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        let action = "harvest";
        let Some(writer) = self.writer else {
            return Ok(0);
        };
        if self.device.back_end() != writer {
            let why = "another back end has replaced the one that was lost; migrate again";
            return Err(failed(action, io::Error::other(why)));
        }
        let Some(memory) = &self.memory else {
            return Ok(self.used_rings_into(bitmap));
        };
        // A back end that died may have written to pages without logging them.
        self.device
            .check_alive()
            .map_err(|error| failed(action, io::Error::other(error)))?;
        let mut taken = 0;
        let mut chunk = [0; CHUNK_BYTES];
        // Only for memory regions: reading elsewhere would allocate pages of the file.
        for region in self.device.ram().regions() {
            let words = region.first() as usize / 64..region.end().div_ceil(64) as usize;
            for first in words.clone().step_by(CHUNK_BYTES / WORD_BYTES) {
                let count = (words.end - first).min(CHUNK_BYTES / WORD_BYTES);
                let copy = &mut chunk[..count * WORD_BYTES];
                (memory.copy(first, copy)).map_err(|error| failed(action, error))?;
                let (copied, _) = copy.as_chunks::<WORD_BYTES>();
                for (index, _) in (first..).zip(copied).filter(|(_, word)| **word != [0; 8]) {
                    let bits = memory.take(index).map_err(|error| failed(action, error))?;
                    taken += u64::from(bits.count_ones());
                    bitmap.merge(index, bits);
                }
            }
        }
        Ok(taken)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.writer = None;
        if self.memory.take().is_none() {
            return Ok(());
        }
        match self.device.stop_logging() {
            // A lost back end does not log and cannot be told.
            Ok(()) | Err(VirtioError::Lost(_)) => Ok(()),
            Err(error) => Err(failed("stop", io::Error::other(error))),
        }
    }
}

/// The memory file.
#[derive(Debug)]
struct LogMemory {
    file: File,
    bytes: u64,
    mapping: MmapRegion<()>,
}

impl LogMemory {
    fn new(pages: u64) -> io::Result<Self> {
        let bytes = pages.div_ceil(8).next_multiple_of(spec::PAGE_SIZE);
        // A back end that could shrink the file would make our reads fault.
        let file = sealed_file("balloon-dirty-log", bytes)?;
        let size = usize::try_from(bytes).map_err(io::Error::other)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), size)
            .map_err(io::Error::other)?;
        Ok(Self {
            file,
            bytes,
            mapping,
        })
    }

    /// Copies the words from `first` on.
    fn copy(&self, first: usize, words: &mut [u8]) -> io::Result<()> {
        let slice = self.mapping.get_slice(first * WORD_BYTES, words.len());
        slice.map_err(io::Error::other)?.copy_to(words);
        Ok(())
    }

    /// Clears a word and returns its bits. A bit that is set during the call is in the result or stays in the word.
    fn take(&self, index: usize) -> io::Result<u64> {
        let word: &AtomicU64 = self
            .mapping
            .get_atomic_ref(index * WORD_BYTES)
            .map_err(io::Error::other)?;
        // A plain load first: most words are empty, and a swap would allocate a page of the file.
        if word.load(Ordering::Relaxed) == 0 {
            return Ok(0);
        }
        Ok(u64::from_le(word.swap(0, Ordering::AcqRel)))
    }
}

fn failed(action: &'static str, source: io::Error) -> DirtyLogError {
    DirtyLogError {
        log: LogSource::VhostUser,
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_bit_is_taken_once() {
        let memory = LogMemory::new(300_000).unwrap();
        assert_eq!(memory.bytes, 40_960);
        memory.file.write_at(&[0b101], 8 * 7 + 1).unwrap();
        assert_eq!(memory.take(7).unwrap(), 0b101 << 8);
        assert_eq!(memory.take(7).unwrap(), 0);
    }

    #[test]
    fn a_word_outside_the_log_is_an_error_and_the_file_cannot_shrink() {
        let memory = LogMemory::new(1).unwrap();
        assert!(memory.take(512).is_err());
        assert!(memory.copy(511, &mut [0; 16]).is_err());
        assert!(memory.file.set_len(0).is_err());
    }
}
