// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory files that another process lends: they are checked for what they are before they are mapped.
//!
//! A file that can shrink would end this process at its next access. A file that is not memory may hang whoever asks for it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, SealFlags, fcntl_get_seals, fcntl_getfl, fstat};
use spec::{PAGE_SIZE, PageRange};

use super::layout::Layout;
use super::ram_region::RamRegion;

/// Lent memory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LentError {
    /// Descriptors are missing, or too many.
    #[error(
        "{files} file descriptors came for {regions} regions of memory: does something pass the bytes on between the two sides?"
    )]
    Descriptors {
        /// Descriptors that came.
        files: usize,
        /// Regions of guest memory.
        regions: usize,
    },
    /// A region's file is unfit.
    #[error("the file of the region at {gpa:#x} {unfit}")]
    File {
        /// Guest-physical start of the region.
        gpa: u64,
        /// Why.
        unfit: Unfit,
    },
}

/// Why a file cannot be guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// A pipe, a socket, a file on a disk or in another file system.
    #[error("is not a memory file (memfd)")]
    NotMemory,
    /// Whoever has it can truncate it, and accesses would then fault.
    #[error("can shrink: it must be sealed against that (F_SEAL_SHRINK)")]
    CanShrink,
    /// It cannot be written.
    #[error("cannot be written: it is open for reading only, or sealed against writing")]
    ReadOnly,
    /// The region ends beyond the file's end.
    #[error("is too short: it has {found} bytes, and the region ends at {needed}")]
    TooShort {
        /// Bytes of the file.
        found: u64,
        /// Bytes that it must have.
        needed: u128,
    },
    /// The region begins or ends within a page of the file.
    #[error("has pages of {0} bytes, and the region is not made of whole ones")]
    PartOfPage(u64),
    /// The region shares bytes with another one.
    #[error("has another region in the same place")]
    Shared,
    /// The kernel does not say what it is.
    #[error("cannot be examined: {0}")]
    Unknown(#[from] io::Error),
}

/// The regions of `layout` in `files`, each at its offset. Every file is memory that can be written and does not shrink.
///
/// # Errors
/// [`LentError`] names the first region that cannot be used.
pub fn regions(
    layout: &Layout,
    offsets: impl IntoIterator<Item = u64>,
    files: Vec<OwnedFd>,
) -> Result<Vec<RamRegion>, LentError> {
    let regions = layout.regions();
    if files.len() != regions.len() {
        return Err(LentError::Descriptors {
            files: files.len(),
            regions: regions.len(),
        });
    }
    let mut lent = Vec::with_capacity(files.len());
    let mut places = Vec::with_capacity(files.len());
    for ((pages, offset), file) in regions.iter().zip(offsets).zip(files) {
        let region = RamRegion {
            gpa: pages.first() * PAGE_SIZE,
            len: pages.bytes(),
            file: File::from(file),
            offset,
        };
        let place = checked(&region, &places).map_err(|unfit| LentError::File {
            gpa: region.gpa,
            unfit,
        })?;
        places.push(place);
        lent.push(region);
    }
    Ok(lent)
}

/// A file's identity, and which of its pages a region takes.
type Place = (u64, u64, PageRange);

fn checked(region: &RamRegion, others: &[Place]) -> Result<Place, Unfit> {
    // The kernel knows the seals without asking a file system. Only files in memory have any.
    let seals = fcntl_get_seals(&region.file).map_err(|_| Unfit::NotMemory)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(Unfit::CanShrink);
    }
    let modes = fcntl_getfl(&region.file).map_err(io::Error::from)?;
    let write_seals = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
    if modes & OFlags::RWMODE != OFlags::RDWR || seals.intersects(write_seals) {
        return Err(Unfit::ReadOnly);
    }
    let stat = fstat(&region.file).map_err(io::Error::from)?;
    let found = u64::try_from(stat.st_size).unwrap_or(0);
    let needed = u128::from(region.offset) + u128::from(region.len);
    if needed > u128::from(found) {
        return Err(Unfit::TooShort { found, needed });
    }
    let page = region.host_page_bytes()?;
    let place = PageRange::inside(region.offset, region.len)
        .filter(|_| region.offset.is_multiple_of(page) && region.len.is_multiple_of(page))
        .ok_or(Unfit::PartOfPage(page))?;
    let file = (stat.st_dev, stat.st_ino);
    let is_shared = |&(device, number, taken): &Place| {
        (device, number) == file && taken.intersection(place).is_some()
    };
    match others.iter().any(is_shared) {
        true => Err(Unfit::Shared),
        false => Ok((file.0, file.1, place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    const REGION: u64 = 4 * PAGE_SIZE;

    fn layout() -> Layout {
        let pages = |first| PageRange::new(first, REGION / PAGE_SIZE).unwrap();
        Layout::new(vec![pages(0), pages(100)]).unwrap()
    }

    fn memory(bytes: u64, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("lent", flags).unwrap();
        rustix::fs::ftruncate(&file, bytes).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn good() -> OwnedFd {
        memory(REGION, SealFlags::SHRINK)
    }

    /// Why `file` cannot be the second region, at `offset`.
    fn unfit(file: OwnedFd, offset: u64) -> Unfit {
        match regions(&layout(), [0, offset], vec![good(), file]) {
            Err(LentError::File { gpa, unfit }) => {
                assert_eq!(gpa, 100 * PAGE_SIZE);
                unfit
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn regions_lie_in_files_of_their_own_or_side_by_side_in_one() {
        let lent = regions(&layout(), [0, 0], vec![good(), good()]).unwrap();
        let places: Vec<_> = lent.iter().map(|region| (region.gpa, region.len)).collect();
        assert_eq!(places, [(0, REGION), (100 * PAGE_SIZE, REGION)]);
        let one = memory(2 * REGION, SealFlags::SHRINK);
        let twice = || vec![one.try_clone().unwrap(), one.try_clone().unwrap()];
        let lent = regions(&layout(), [REGION, 0], twice()).unwrap();
        assert_eq!(lent[0].offset, REGION);
        let shared = regions(&layout(), [REGION - PAGE_SIZE, 0], twice());
        let is_shared = |error: &LentError| {
            matches!(
                error,
                LentError::File {
                    unfit: Unfit::Shared,
                    ..
                }
            )
        };
        assert!(shared.is_err_and(|error| is_shared(&error)));
    }

    #[test]
    fn as_many_files_as_regions_must_come() {
        for count in [0, 1, 3] {
            let files = (0..count).map(|_| good()).collect();
            let refused = regions(&layout(), [0, 0], files);
            assert!(
                matches!(refused, Err(LentError::Descriptors { files, regions: 2 }) if files == count)
            );
        }
    }

    #[test]
    fn a_file_that_is_not_memory_is_refused() {
        let disk = tempfile::tempfile().unwrap();
        let (near, far) = std::io::pipe().unwrap();
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let proc = File::open("/proc/self/maps").unwrap();
        let files: [OwnedFd; 5] = [
            disk.into(),
            near.into(),
            far.into(),
            socket.into(),
            proc.into(),
        ];
        for file in files {
            let shown = format!("{file:?}");
            // A disk may itself be memory; then its files can shrink.
            assert!(
                matches!(unfit(file, 0), Unfit::NotMemory | Unfit::CanShrink),
                "{shown}"
            );
        }
    }

    #[test]
    fn memory_that_can_shrink_or_cannot_be_written_is_refused() {
        let can_shrink = memory(REGION, SealFlags::GROW);
        assert!(matches!(unfit(can_shrink, 0), Unfit::CanShrink));
        for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
            let sealed = memory(REGION, SealFlags::SHRINK | seal);
            assert!(matches!(unfit(sealed, 0), Unfit::ReadOnly));
        }
        let kept = good();
        let path = format!("/proc/self/fd/{}", kept.as_raw_fd());
        let read_only = File::open(path).unwrap();
        assert!(matches!(unfit(read_only.into(), 0), Unfit::ReadOnly));
    }

    #[test]
    fn a_region_lies_wholly_in_its_file() {
        let short = memory(REGION - 1, SealFlags::SHRINK);
        assert!(matches!(unfit(short, 0), Unfit::TooShort { .. }));
        for offset in [PAGE_SIZE, u64::MAX, u64::MAX - REGION + 1] {
            assert!(matches!(unfit(good(), offset), Unfit::TooShort { .. }));
        }
        let long = memory(2 * REGION, SealFlags::SHRINK);
        assert!(matches!(unfit(long, 1), Unfit::PartOfPage(PAGE_SIZE)));
    }
}
