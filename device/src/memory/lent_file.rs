// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks files of another process before the device maps, reads or writes them.
//!
//! A file system may be a program of that process (FUSE) or another machine (NFS). If it does not answer, the thread
//! that asked hangs, and may not even end with its process. So nothing here asks a file system. The kernel itself knows
//! which files are memory, and `statx` can be told not to refresh what the kernel knows.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, FileType, SealFlags, Statx, StatxFlags, fcntl_get_seals, fstat, fstatfs, statx,
};
use rustix::io::Errno;

/// `f_type` of hugetlbfs, and of memfds with huge pages.
const HUGETLBFS: u64 = 0x9584_58f6;
/// `f_type` of FUSE, which has block devices, too.
const FUSE: u64 = 0x6573_5546;

/// The kinds of files that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// memfd, tmpfs or hugetlbfs.
    Memory,
    /// A file on a disk of this machine.
    Disk,
    /// A character device, such as `/dev/dax0.0`.
    Device,
}

/// Refuses to map `size` bytes of `file` from `offset` on, as guest memory or as a dirty log, if an access may hang, or
/// if the file is too short: an access beyond a file's end raises a signal. A device has no length to check.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`], with the reason.
pub fn refuse_unfit(file: impl AsFd, offset: u64, size: u64) -> io::Result<()> {
    let end = offset.checked_add(size);
    let end = end.filter(|end| size != 0 && *end <= i64::MAX as u64);
    let end = end.ok_or_else(|| refused("an impossible range of a file"))?;
    let kind = kind(&file)?;
    if kind != Kind::Device && end > length(&file)? {
        return Err(refused("the range ends beyond the file's end"));
    }
    // The kernel maps huge pages whole, whatever the length, and would neither unmap nor replace a part of one.
    if let Some(page) = huge_page(&file, kind)?
        && !(offset.is_multiple_of(page) && size.is_multiple_of(page))
    {
        return Err(refused("a part of a huge page: lend whole huge pages"));
    }
    Ok(())
}

/// Whether `file` is memory in pages of the processor's smallest size: a memfd or a file on tmpfs, not hugetlbfs.
/// An access to it needs no huge page, which the host may not have.
///
/// # Errors
/// If the file cannot be examined.
pub fn is_plain_memory(file: impl AsFd) -> io::Result<bool> {
    Ok(seals(&file).is_some() && huge_page(&file, Kind::Memory)?.is_none())
}

/// Bytes of `file`, which is one of [`Kind`].
fn length(file: impl AsFd) -> io::Result<u64> {
    Ok(u64::try_from(fstat(file)?.st_size).unwrap_or(0))
}

/// Whether `file` is an eventfd that can be written.
pub fn is_eventfd(file: impl AsFd) -> bool {
    // An eventfd is in no folder, so it has no type. Many others have none either, but of these only an eventfd accepts
    // eight bytes. They add 0 to its counter.
    file_type(&file) == Ok(FileType::Unknown)
        && rustix::io::write(file, &0u64.to_ne_bytes()) == Ok(8)
}

/// The type of `file`, if the kernel itself knows it.
///
/// # Errors
/// If the kernel does not know the file.
pub fn file_type(file: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(known(file)?.stx_mode.into()))
}

fn kind(file: impl AsFd) -> io::Result<Kind> {
    if seals(&file).is_some() {
        return Ok(Kind::Memory);
    }
    let known = known(&file)?;
    let hangs = || {
        refused(
            "a file whose file system may never answer (FUSE, a network, an overlay): lend a memfd, or a file on \
             tmpfs, hugetlbfs or a disk",
        )
    };
    match FileType::from_raw_mode(known.stx_mode.into()) {
        FileType::CharacterDevice => Ok(Kind::Device),
        // File systems without a disk have no major number.
        FileType::RegularFile if known.stx_dev_major == 0 => Err(hangs()),
        FileType::RegularFile if type_of_system(&file)? == FUSE => Err(hangs()),
        FileType::RegularFile => Ok(Kind::Disk),
        // For a file in another user's FUSE the kernel only names the file system.
        _ if known.stx_mode == 0 && known.stx_dev_major == 0 => Err(hangs()),
        _ => Err(refused("not a file that can be memory")),
    }
}

/// The seals of `file`. Only files in memory have any, and the kernel asks no file system for them.
fn seals(file: impl AsFd) -> Option<SealFlags> {
    fcntl_get_seals(file).ok()
}

/// The size of the huge pages of `file`, if it has huge pages.
fn huge_page(file: impl AsFd, kind: Kind) -> io::Result<Option<u64>> {
    if kind != Kind::Memory {
        return Ok(None);
    }
    let page = u64::try_from(fstatfs(&file)?.f_bsize).unwrap_or(0);
    Ok((type_of_system(file)? == HUGETLBFS && page != 0).then_some(page))
}

fn type_of_system(file: impl AsFd) -> io::Result<u64> {
    // In 32 bits, whatever the field's type is.
    Ok(fstatfs(file)?.f_type as u64 & u64::from(u32::MAX))
}

/// What the kernel knows about `file` without asking its file system.
fn known(file: impl AsFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(file, c"", flags, StatxFlags::empty())
}

fn refused(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    /// `None` if the kernel has no huge pages to give.
    fn memfd(flags: MemfdFlags, bytes: u64) -> Option<File> {
        let file = memfd_create("lent", MemfdFlags::CLOEXEC | flags).ok()?;
        let file = File::from(file);
        file.set_len(bytes).ok()?;
        Some(file)
    }

    #[test]
    fn memory_files_are_fit_as_far_as_they_reach() {
        let file = memfd(MemfdFlags::empty(), 8192).unwrap();
        assert!(refuse_unfit(&file, 4096, 4096).is_ok());
        assert!(is_plain_memory(&file).unwrap());
        for (offset, size) in [(4096, 4097), (0, 0), (u64::MAX, 1), (0, u64::MAX)] {
            assert!(
                refuse_unfit(&file, offset, size).is_err(),
                "{offset} {size}"
            );
        }
    }

    #[test]
    fn huge_pages_are_lent_whole_or_not_at_all() {
        const HUGE: u64 = 2 << 20;
        let Some(file) = memfd(MemfdFlags::HUGETLB, 2 * HUGE) else {
            return spec_testing::skipped("this kernel has no huge pages for memory files");
        };
        assert!(!is_plain_memory(&file).unwrap());
        assert!(refuse_unfit(&file, HUGE, HUGE).is_ok());
        for (offset, size) in [(0, 4096), (4096, HUGE), (0, HUGE + 4096)] {
            assert!(
                refuse_unfit(&file, offset, size).is_err(),
                "{offset} {size}"
            );
        }
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        // On a file system without a disk, like FUSE.
        let proc = File::open("/proc/self/maps").unwrap();
        let refusal = refuse_unfit(&proc, 0, 1).unwrap_err().to_string();
        assert!(refusal.contains("memfd"), "{refusal}");
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        assert!(refuse_unfit(&event, 0, 1).is_err());
        let folder = File::open("/").unwrap();
        assert!(refuse_unfit(&folder, 0, 1).is_err());
        assert!(!is_plain_memory(&proc).unwrap());
    }

    #[test]
    fn an_eventfd_is_told_from_others_that_lie_in_no_folder_and_is_left_as_it_was() {
        let event = eventfd(3, EventfdFlags::NONBLOCK).unwrap();
        assert!(is_eventfd(&event));
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
        let others: [OwnedFd; 3] = [
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
            memfd(MemfdFlags::empty(), 4096).unwrap().into(),
            std::io::pipe().unwrap().1.into(),
        ];
        for other in &others {
            assert!(!is_eventfd(other), "{other:?}");
        }
    }
}
