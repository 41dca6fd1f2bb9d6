// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of guest memory the device has written: the front end's dirty log.
//!
//! The log has one bit for each 4 KiB page, from guest-physical 0, in a file of the front end
//! (`VHOST_USER_SET_LOG_BASE`). Two flags switch logging on and off while rings run:
//! - `VHOST_F_LOG_ALL` among the features: every write to guest memory is logged. Guest memory reports its writes
//!   through [`LogBitmap`], also in regions that are plugged in later.
//! - `VHOST_VRING_F_LOG` among the flags of a ring's addresses: writes to its used ring are logged, at an address that
//!   the front end chooses. The ring reports them itself, see
//!   [`Ring::log_used`](crate::virtqueue::ring::Ring::log_used).

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use spec::PageRange;
use spec::hint_map::word_masks;
use vhost_user_backend::bitmap::{BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{FileOffset, GuestMemoryRegion, MmapRegion, VolatileMemory};

use crate::memory::lent_file::refuse_unfit;
use crate::memory::sigbus::{Guard, Share};

/// Bytes of a page in the log, whatever the host's page size (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// The log of one front end, and whether it is in use.
#[derive(Debug, Default)]
pub struct DirtyLog {
    every_write: AtomicBool,
    file: RwLock<Option<LogFile>>,
}

impl DirtyLog {
    /// Logs to `file` from now on.
    pub fn set_file(&self, file: LogFile) {
        *self.file.write() = Some(file);
    }

    /// From now on, logs every write to guest memory, or only writes to the used rings that ask for it.
    pub fn log_every_write(&self, on: bool) {
        self.every_write.store(on, Ordering::Release);
    }

    /// Closes the log file: the front end has gone.
    pub fn clear(&self) {
        self.log_every_write(false);
        *self.file.write() = None;
    }

    /// Whether every write to guest memory is to be logged.
    pub fn logs_every_write(&self) -> bool {
        self.every_write.load(Ordering::Acquire)
    }

    /// Whether memory up to guest-physical `end` can be logged. Without a log file the answer is yes, because the front
    /// end does not read a log.
    pub fn reaches(&self, end: u64) -> bool {
        let file = self.file.read();
        file.as_ref().is_none_or(|file| file.reaches(end))
    }

    /// Notes that the `length` bytes at guest-physical `address` have been written.
    pub fn mark(&self, address: u64, length: u64) {
        let file = self.file.read();
        if let Some(file) = file.as_ref() {
            file.mark(address, length);
        }
    }

    /// Whether the front end has truncated the log.
    pub fn is_lost(&self) -> bool {
        let file = self.file.read();
        file.as_ref().is_some_and(|file| file.guard.is_lost())
    }
}

/// The front end's log file, mapped.
#[derive(Debug)]
pub struct LogFile {
    // Dropped first: see `Guard`.
    guard: Guard,
    map: MmapRegion,
}

impl LogFile {
    /// Maps `size` bytes of `file` from `offset` on, under a guard of `share`. `wake` is called if they disappear.
    ///
    /// # Errors
    /// If the file is shorter than that, may hang, or cannot be mapped there.
    pub fn open(
        file: File,
        offset: u64,
        size: u64,
        share: &Share,
        wake: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        refuse_unfit(&file, offset, size)?;
        let length = usize::try_from(size).map_err(io::Error::other)?;
        let map = MmapRegion::from_file(FileOffset::new(file, offset), length)
            .map_err(io::Error::other)?;
        Ok(Self {
            guard: share.guard(map.as_ptr(), length, Some(wake))?,
            map,
        })
    }

    /// Whether the file has a bit for every page below guest-physical `end`.
    pub fn reaches(&self, end: u64) -> bool {
        end.div_ceil(PAGE).div_ceil(8) <= self.map.size() as u64
    }

    fn mark(&self, address: u64, length: u64) {
        let Some(last) = length.checked_sub(1) else {
            return;
        };
        let (first, last) = (address / PAGE, address.saturating_add(last) / PAGE);
        let Some(pages) = PageRange::new(first, last - first + 1) else {
            return;
        };
        for (word, mask) in word_masks(pages) {
            let Some(at) = word.checked_mul(8).filter(|at| *at < self.map.size()) else {
                return;
            };
            // The bytes of the log are in ascending order of pages. The fence orders the logged write before the bit:
            // whoever sees the bit must see the write.
            match self.map.get_atomic_ref::<AtomicU64>(at) {
                Ok(word) => {
                    word.fetch_or(mask.to_le(), Ordering::SeqCst);
                }
                Err(_) => self.mark_bytes(at, mask),
            }
        }
    }

    /// Marks pages in the last bytes of a log whose length is not a multiple of a word.
    fn mark_bytes(&self, at: usize, mask: u64) {
        for (byte, bits) in mask.to_le_bytes().into_iter().enumerate() {
            if let Ok(byte) = self.map.get_atomic_ref::<AtomicU8>(at + byte) {
                byte.fetch_or(bits, Ordering::SeqCst);
            }
        }
    }
}

/// The part of guest memory that reports its writes. If it belongs to no region yet, it reports nothing.
#[derive(Clone, Debug, Default)]
pub struct LogBitmap {
    region: Arc<OnceLock<LoggedRegion>>,
    /// The offset in the region at which this part begins.
    offset: u64,
}

/// A region of guest memory: where it lies, and the log of its writes.
#[derive(Debug)]
struct LoggedRegion {
    log: Arc<DirtyLog>,
    start: u64,
}

impl LogBitmap {
    /// Reports writes to `log` from now on, as those of a region at guest-physical `start`. Only the first call counts,
    /// because a region does not move.
    pub fn belongs_to(&self, log: &Arc<DirtyLog>, start: u64) {
        self.region.get_or_init(|| LoggedRegion {
            log: Arc::clone(log),
            start,
        });
    }
}

impl Bitmap for LogBitmap {
    fn mark_dirty(&self, offset: usize, length: usize) {
        let region = self.region.get();
        if let Some(region) = region.filter(|region| region.log.logs_every_write()) {
            let address = region.start.saturating_add(self.offset);
            region
                .log
                .mark(address.saturating_add(offset as u64), length as u64);
        }
    }

    /// Unknown, because the front end clears bits at any time.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            region: Arc::clone(&self.region),
            offset: self.offset.saturating_add(offset as u64),
        }
    }
}

impl WithBitmapSlice<'_> for LogBitmap {
    type S = Self;
}

impl BitmapSlice for LogBitmap {}

impl NewBitmap for LogBitmap {
    fn with_len(_length: usize) -> Self {
        Self::default()
    }
}

impl BitmapReplace for LogBitmap {
    type InnerBitmap = Unused;

    fn replace(&self, unused: Unused) {
        match unused {}
    }
}

/// The type of a log file that the crate would make. It never gets one.
#[derive(Debug)]
pub enum Unused {}

impl MemRegionBitmap for Unused {
    fn new<R: GuestMemoryRegion>(_region: &R, _log: Arc<MmapLogReg>) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    fn memfd(bytes: u64) -> File {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        file
    }

    fn open(file: &File, offset: u64, size: u64) -> io::Result<LogFile> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let share = Share::new(1).unwrap();
        LogFile::open(
            file.try_clone().unwrap(),
            offset,
            size,
            &share,
            wake.as_fd(),
        )
    }

    #[test]
    fn a_log_beyond_its_file_is_refused() {
        let file = memfd(8192);
        for (offset, size) in [
            (0, 8193),
            (4096, 4097),
            (8192, 1),
            (0, 0),
            (u64::MAX - 4095, 4096),
            (u64::MAX, u64::MAX),
            (0, u64::MAX),
            (1, 4096),
        ] {
            assert!(open(&file, offset, size).is_err(), "{offset:#x} {size:#x}");
        }
        assert!(open(&file, 4096, 4096).is_ok());
    }

    #[test]
    fn a_log_reaches_as_far_as_it_has_bits() {
        let log = open(&memfd(3), 0, 3).unwrap();
        assert!(log.reaches(0) && log.reaches(24 * PAGE));
        assert!(!log.reaches(24 * PAGE + 1) && !log.reaches(u64::MAX));
    }

    #[test]
    fn writes_are_logged_while_both_switch_and_log_are_there() {
        let log = Arc::new(DirtyLog::default());
        let bitmap = LogBitmap::default();
        bitmap.mark_dirty(0, 1);
        bitmap.belongs_to(&log, 8 * PAGE);
        log.log_every_write(true);
        bitmap.mark_dirty(0, 1);
        let file = memfd(4096);
        log.set_file(open(&file, 0, 4096).unwrap());
        let written = |offset| {
            bitmap.slice_at(4096).mark_dirty(offset, 2);
            let mut bytes = [0; 3];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert_eq!(written(4095), [0, 0b0000_0110, 0], "pages 9 and 10");
        log.log_every_write(false);
        assert_eq!(written(8 * 4096), [0, 0b0000_0110, 0]);
        log.log_every_write(true);
        assert_eq!(written(8 * 4096), [0, 0b0000_0110, 0b0000_0010]);
        log.clear();
        log.log_every_write(true);
        assert_eq!(written(0), [0, 0b0000_0110, 0b0000_0010]);
    }

    proptest! {
        /// Compared with every page by hand, in logs that may end within a word.
        #[test]
        fn exactly_the_pages_that_were_touched_are_marked(
            size in 1u64..40, writes in proptest::collection::vec((0u64..400 * PAGE, 0u64..80 * PAGE), 1..5),
        ) {
            let mut file = memfd(4096);
            let log = open(&file, 0, size).unwrap();
            for &(address, length) in &writes {
                log.mark(address, length);
            }
            log.mark(u64::MAX - 1, u64::MAX);
            let mut bytes = vec![0; 4096];
            file.read_exact(&mut bytes).unwrap();
            for page in 0..4096 * 8 {
                let bit = bytes[page / 8] >> (page % 8) & 1 == 1;
                let page = page as u64;
                let touched = writes.iter().any(|&(address, length)| {
                    length > 0 && page >= address / PAGE && page <= (address + length - 1) / PAGE
                });
                prop_assert_eq!(bit, touched && page < size * 8, "page {}", page);
            }
        }
    }
}
