// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the pages come from: a snapshot file, or a memory file of Firecracker's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use host_migrator::paging::{Pager, PagerError};
use host_migrator::{Layout, MigrationBitmap, PageRange, Snapshot, SnapshotTarget};
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;
use spec::PAGE_SIZE;
use spec::file::MAGIC;

use super::error::{ClientError, ServeError};

/// Where the pages come from.
#[derive(Clone)]
pub(super) enum Source {
    Snapshot(Arc<Snapshot>),
    Image(Arc<Image>),
}

impl Source {
    /// Opens what is at `target`. What does not begin like a snapshot is taken for a memory file, unless it has an offset.
    pub(super) fn open(target: &SnapshotTarget) -> Result<Self, ServeError> {
        let is_image = target.offset.is_none() && !begins_like_a_snapshot(&target.path)?;
        Ok(match is_image {
            true => Self::Image(Arc::new(Image::open(&target.path)?)),
            false => Self::Snapshot(Arc::new(Snapshot::open(target)?)),
        })
    }

    /// Where the memory lies. That of a memory file is one region from 0 on.
    pub(super) fn layout(&self) -> &Layout {
        match self {
            Self::Snapshot(snapshot) => snapshot.layout(),
            Self::Image(image) => &image.layout,
        }
    }

    /// The pages with content.
    pub(super) fn content(&self) -> Result<MigrationBitmap, ClientError> {
        match self {
            Self::Snapshot(snapshot) => Ok(snapshot.content()?),
            Self::Image(image) => image.content().map_err(ClientError::Socket),
        }
    }

    pub(super) fn pager(&self) -> Arc<dyn Pager> {
        match self {
            Self::Snapshot(snapshot) => Arc::clone(snapshot) as _,
            Self::Image(image) => Arc::clone(image) as _,
        }
    }
}

fn begins_like_a_snapshot(path: &Path) -> Result<bool, ServeError> {
    let file = File::open(path).map_err(failed("open"))?;
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => Ok(magic == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(failed("read")(error)),
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::File { action, source }
}

/// A memory file: the regions one after the other. It has no checksums.
pub(super) struct Image {
    file: File,
    layout: Layout,
}

impl Image {
    fn open(path: &Path) -> Result<Self, ServeError> {
        let file = File::open(path).map_err(failed("open"))?;
        let length = file.metadata().map_err(failed("look at"))?.len();
        let pages =
            PageRange::new(0, length / PAGE_SIZE).filter(|_| length.is_multiple_of(PAGE_SIZE));
        let layout = pages.and_then(|pages| Layout::new(vec![pages]).ok());
        let layout = layout.ok_or(ServeError::Length(length))?;
        Ok(Self { file, layout })
    }

    /// The pages that are not in holes. A hole reads as zeros, whoever has made it, and need not be read.
    fn content(&self) -> io::Result<MigrationBitmap> {
        let content = MigrationBitmap::new(self.layout.bitmap_pages());
        let end = self.layout.bitmap_pages() * PAGE_SIZE;
        let mut at = 0;
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                found => found?,
            };
            let hole = seek(&self.file, SeekFrom::Hole(data))?.min(end);
            let (first, last) = (data / PAGE_SIZE, hole.div_ceil(PAGE_SIZE));
            if let Some(run) = last
                .checked_sub(first)
                .and_then(|count| PageRange::new(first, count))
            {
                content.insert(run);
            }
            at = hole.max(data + 1);
        }
        Ok(content)
    }
}

impl Pager for Image {
    fn read(&self, range: PageRange, content: &mut [u8]) -> Result<(), PagerError> {
        let read = self.file.read_exact_at(content, range.first() * PAGE_SIZE);
        read.map_err(|error| {
            let at = range.first() * PAGE_SIZE;
            PagerError::new(format_args!(
                "the memory file cannot be read at {at:#x}: {error}"
            ))
        })
    }

    fn will_read(&self, range: PageRange) {
        let length = std::num::NonZeroU64::new(range.bytes());
        // It is only advice.
        let _ = fadvise(
            &self.file,
            range.first() * PAGE_SIZE,
            length,
            Advice::WillNeed,
        );
    }
}
