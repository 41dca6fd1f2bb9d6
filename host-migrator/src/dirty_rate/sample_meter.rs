// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Estimates dirty pages from the content of a sample of them.

use std::sync::Arc;

use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};

use super::{DirtyMeter, DirtyMeterError};
use crate::memory::error::RamError;
use crate::memory::ram::GuestRam;

/// How many pages are sampled: 64 MiB, which one look reads. Of a guest that makes a hundredth of its memory dirty each second, the
/// estimate is then off by 8 % (one standard deviation), whatever the size of memory.
pub const SAMPLED_PAGES: u64 = 16384;

/// Compares the checksums of sampled pages. It does not see a page that was written with what it had.
#[derive(Debug)]
pub struct SampleMeter {
    ram: Arc<GuestRam>,
    sample: Vec<Sampled>,
}

#[derive(Debug)]
struct Sampled {
    page: PageRange,
    checksum: u32,
    is_seen: bool,
}

impl SampleMeter {
    /// Samples at most `most` pages of `ram`, one at a place chosen by `seed` in each of as many equal parts.
    ///
    /// # Errors
    /// [`RamError`] if they cannot be read.
    pub fn start(ram: Arc<GuestRam>, most: u64, seed: u64) -> Result<Self, RamError> {
        let pages = ram.pages();
        let count = most.min(pages);
        let mut random = Random::new(seed);
        let mut sample = Vec::with_capacity(count as usize);
        for part in 0..count {
            let [first, end] = [part, part + 1].map(|at| share(pages, at, count));
            let chosen = first + random.below(end - first);
            if let Some(page) = nth_page(ram.regions(), chosen) {
                sample.push(Sampled {
                    page,
                    checksum: checksum(&ram, page)?,
                    is_seen: false,
                });
            }
        }
        Ok(Self { ram, sample })
    }

    /// How many pages are sampled.
    pub fn sampled(&self) -> u64 {
        self.sample.len() as u64
    }

    /// As many pages of all memory as `count` is of the sample.
    fn of_all(&self, count: u64) -> u64 {
        share(self.ram.pages(), count, self.sampled().max(1))
    }
}

impl DirtyMeter for SampleMeter {
    fn look(&mut self) -> Result<u64, DirtyMeterError> {
        let mut changed = 0;
        for page in &mut self.sample {
            let now = checksum(&self.ram, page.page)?;
            if std::mem::replace(&mut page.checksum, now) != now {
                page.is_seen = true;
                changed += 1;
            }
        }
        Ok(self.of_all(changed))
    }

    fn distinct(&self) -> u64 {
        self.of_all(self.sample.iter().filter(|page| page.is_seen).count() as u64)
    }
}

/// `whole` × `part` ÷ `of`.
fn share(whole: u64, part: u64, of: u64) -> u64 {
    (u128::from(whole) * u128::from(part) / u128::from(of)) as u64
}

/// The page that has `index` others of `regions` before it, if there is one.
fn nth_page(regions: &[PageRange], mut index: u64) -> Option<PageRange> {
    for region in regions {
        if index < region.count() {
            return PageRange::new(region.first() + index, 1);
        }
        index -= region.count();
    }
    None
}

/// The checksum of `page`, without taking memory of the host for one that was never touched.
fn checksum(ram: &GuestRam, page: PageRange) -> Result<u32, RamError> {
    let mut content = [0; PAGE_SIZE as usize];
    ram.peek(page, &mut content)?;
    Ok(crc32fast::hash(&content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ram_region::RamRegion;

    /// Memory of 64 pages and of 8 behind a gap.
    fn ram() -> (Arc<GuestRam>, std::fs::File) {
        let low = RamRegion::new(0, 64 * PAGE_SIZE).unwrap();
        let file = low.file.try_clone().unwrap();
        let high = RamRegion::new(1 << 32, 8 * PAGE_SIZE).unwrap();
        (Arc::new(GuestRam::map(vec![low, high]).unwrap()), file)
    }

    fn write(ram: &GuestRam, pfn: u64, byte: u8) {
        let page = PageRange::new(pfn, 1).unwrap();
        ram.write(page, &[byte; PAGE_SIZE as usize]).unwrap();
    }

    #[test]
    fn a_sample_of_all_pages_finds_each_page_that_was_changed() {
        let (ram, file) = ram();
        let mut meter = SampleMeter::start(Arc::clone(&ram), 1000, 1).unwrap();
        assert_eq!(meter.sampled(), 72);
        let blocks = rustix::fs::fstat(&file).unwrap().st_blocks;
        assert_eq!(blocks, 0, "memory that was never touched takes none");
        let high = (1 << 32) / PAGE_SIZE;
        for (pages, expected) in [(&[0, 63, high + 7][..], 3), (&[63], 1), (&[], 0)] {
            pages
                .iter()
                .for_each(|pfn| write(&ram, *pfn, expected as u8));
            assert_eq!(meter.look().unwrap(), expected);
        }
        write(&ram, 63, 1);
        assert_eq!(meter.look().unwrap(), 0, "it was written with what it had");
        assert_eq!(meter.distinct(), 3);
    }

    #[test]
    fn a_sample_stands_for_all_pages_and_is_spread_over_them() {
        let (ram, _file) = ram();
        let mut meter = SampleMeter::start(Arc::clone(&ram), 9, 1).unwrap();
        let sampled: Vec<_> = meter.sample.iter().map(|it| it.page.first()).collect();
        for (part, pfn) in sampled[..8].iter().enumerate() {
            assert!(
                (part as u64 * 8..part as u64 * 8 + 8).contains(pfn),
                "{sampled:?}"
            );
        }
        assert!(sampled[8] >= (1 << 32) / PAGE_SIZE, "{sampled:?}");
        (0..32).for_each(|pfn| write(&ram, pfn, 1));
        assert_eq!(meter.look().unwrap(), 32);
        assert_eq!(meter.distinct(), 32);
    }
}
