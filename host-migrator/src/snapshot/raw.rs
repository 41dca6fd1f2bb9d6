// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Raw memory images: the bytes of guest memory and nothing else, as other tools read and write them.
//!
//! Where a page lies in the image is a [`RawLayout`]. An image has no machine state, no checksums and no end that could be checked
//! but its length.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use spec::stream::Totals;
use spec::{PAGE_SIZE, PageRange};

use super::error::SnapshotError;
use super::file::open;
use super::storage::Storage;
use super::writer::{Saved, SnapshotWriter};
use crate::memory::error::RamError;
use crate::memory::layout::Layout;
use crate::memory::page_store::PageStore;
use crate::memory::zero::is_zero;
use crate::vm::state::MachineState;

const PAGE: usize = PAGE_SIZE as usize;
/// Pages that are read at once.
const AT_ONCE: u64 = 256;

/// How the regions of guest memory lie in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawLayout {
    /// One after the other without gaps, as in Firecracker's memory file and in the memory file of a VMM that has one.
    Concatenated,
    /// Each at its guest-physical address, as debuggers of memory expect it.
    AtAddresses,
}

impl RawLayout {
    /// Where each region of `layout` begins in the image.
    fn offsets(self, layout: &Layout) -> Vec<u64> {
        let regions = layout.regions().iter();
        let concatenated = regions.scan(0, |next, region| {
            let at = *next;
            *next += region.bytes();
            Some(at)
        });
        match self {
            Self::Concatenated => concatenated.collect(),
            Self::AtAddresses => (layout.regions().iter())
                .map(|region| region.first() * PAGE_SIZE)
                .collect(),
        }
    }

    /// The bytes of an image of memory that lies as `layout` says.
    pub fn image_bytes(self, layout: &Layout) -> u64 {
        let regions = layout.regions().iter().zip(self.offsets(layout));
        let ends = regions.map(|(region, at)| at + region.bytes());
        ends.max().unwrap_or(0)
    }
}

/// An image that is written. Pages that are zero become holes. A new file reads as zero, so it must be one.
#[derive(Debug)]
pub struct RawImage {
    storage: Box<dyn Storage>,
    layout: Layout,
    offsets: Vec<u64>,
}

impl RawImage {
    /// An image in the new file `storage`.
    ///
    /// # Errors
    /// [`SnapshotError`] if the file cannot have the image's length.
    pub fn create(
        storage: Box<dyn Storage>,
        layout: &Layout,
        how: RawLayout,
    ) -> Result<Self, SnapshotError> {
        let sized = storage.expect(how.image_bytes(layout));
        sized.map_err(SnapshotError::io("make", storage.path()))?;
        Ok(Self {
            offsets: how.offsets(layout),
            layout: layout.clone(),
            storage,
        })
    }

    /// Completes the image: it is on the disk, and gets its name.
    ///
    /// # Errors
    /// [`SnapshotError`] if something of it was not written. There is no image then.
    pub fn finish(self) -> Result<(), SnapshotError> {
        let synced = self.storage.sync();
        synced.map_err(SnapshotError::io("write", self.storage.path()))?;
        let published = self.storage.publish();
        published.map_err(SnapshotError::io("complete", self.storage.path()))
    }
}

impl PageStore for RawImage {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn place(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        let region = self.layout.check(range)?;
        let first = self.layout.regions()[region].first();
        let at = self.offsets[region] + (range.first() - first) * PAGE_SIZE;
        for (from, pages) in used_runs(content) {
            self.storage.write_pages(pages, at + from)?;
        }
        Ok(())
    }

    /// Pages that nobody has placed are holes.
    fn make_zero(&self, range: PageRange) -> Result<(), RamError> {
        self.layout.check(range)?;
        Ok(())
    }

    fn is_known_zero(&self) -> bool {
        true
    }
}

/// An image that is read.
#[derive(Debug)]
pub struct RawSource {
    file: File,
    path: PathBuf,
    layout: Layout,
    how: RawLayout,
}

impl RawSource {
    /// Opens the image at `path`, of memory that lies as `layout` says.
    ///
    /// # Errors
    /// [`SnapshotError`] if it cannot be read, or has another length than the memory.
    pub fn open(path: &Path, layout: Layout, how: RawLayout) -> Result<Self, SnapshotError> {
        let file = open(path, OFlags::RDONLY)?;
        let found = file
            .metadata()
            .map_err(SnapshotError::io("look at", path))?;
        let expected = how.image_bytes(&layout);
        // The length of a block device is not told, and it may be longer.
        if found.is_file() && found.len() != expected {
            return Err(SnapshotError::ImageLength {
                path: path.to_owned(),
                found: found.len(),
                expected,
            });
        }
        let path = path.to_owned();
        Ok(Self {
            file,
            path,
            layout,
            how,
        })
    }

    /// Where the guest's memory lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes a snapshot of the image, in `storage`, of a guest that has this `state` and needs this `description`. `read` is called
    /// with the number of pages that were read since it was called last. Whether a page is zero is decided by its content.
    ///
    /// # Errors
    /// [`SnapshotError`] if the image cannot be read, or the snapshot not be written. There is no new snapshot then.
    pub fn save(
        &self,
        storage: Box<dyn Storage>,
        writers: u32,
        description: &[u8],
        state: &MachineState,
        read: &dyn Fn(u64),
    ) -> Result<Saved, SnapshotError> {
        let writer = SnapshotWriter::begin(storage, &self.layout, description)?;
        let mut writer = writer.with_writers(writers)?;
        let mut totals = Totals::default();
        let mut buffer = vec![0; AT_ONCE as usize * PAGE];
        let regions = self.layout.regions().iter();
        for (region, at) in regions.zip(self.how.offsets(&self.layout)) {
            let mut first = region.first();
            while first < region.end() {
                let count = AT_ONCE.min(region.end() - first);
                let content = &mut buffer[..count as usize * PAGE];
                let at = at + (first - region.first()) * PAGE_SIZE;
                let done = self.file.read_exact_at(content, at);
                done.map_err(SnapshotError::io("read", &self.path))?;
                for (from, pages) in used_runs(content) {
                    let run =
                        PageRange::new(first + from / PAGE_SIZE, pages.len() as u64 / PAGE_SIZE);
                    if let Some(run) = run {
                        totals.pages_sent += run.count();
                        writer.pages(run, pages)?;
                    }
                }
                read(count);
                first += count;
            }
        }
        totals.pages_zero = self.layout.pages() - totals.pages_sent;
        totals.bytes = totals.pages_sent * PAGE_SIZE;
        writer.finish(state, totals)
    }
}

/// The runs of pages in `content` that are not zero, and where they begin.
fn used_runs(content: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let (pages, _) = content.as_chunks::<PAGE>();
    let mut at = 0;
    std::iter::from_fn(move || {
        at += pages[at..].iter().take_while(|page| is_zero(page)).count();
        let from = at;
        at += pages[at..].iter().take_while(|page| !is_zero(page)).count();
        (at > from).then(|| (from as u64 * PAGE_SIZE, &content[from * PAGE..at * PAGE]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart_by_content_alone() {
        let mut content = vec![0; 6 * PAGE];
        for (page, at) in [(1, 0), (2, PAGE - 1), (4, 77)] {
            content[page * PAGE + at] = 1;
        }
        let found: Vec<_> = used_runs(&content)
            .map(|(from, pages)| (from / PAGE_SIZE, pages.len() / PAGE))
            .collect();
        assert_eq!(found, [(1, 2), (4, 1)]);
        assert_eq!(used_runs(&[]).count(), 0);
    }

    #[test]
    fn regions_lie_one_after_the_other_or_at_their_addresses() {
        let region = |first, count| PageRange::new(first, count).unwrap();
        let layout = Layout::new(vec![region(0, 3), region(16, 2)]).unwrap();
        let concatenated = RawLayout::Concatenated;
        assert_eq!(concatenated.offsets(&layout), [0, 3 * PAGE_SIZE]);
        assert_eq!(concatenated.image_bytes(&layout), 5 * PAGE_SIZE);
        let at_addresses = RawLayout::AtAddresses;
        assert_eq!(at_addresses.offsets(&layout), [0, 16 * PAGE_SIZE]);
        assert_eq!(at_addresses.image_bytes(&layout), 18 * PAGE_SIZE);
    }
}
