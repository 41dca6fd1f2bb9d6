// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holes of memory files: pages that were not written since the file was made or punched.
//!
//! The kernel reports them (`SEEK_DATA`, `SEEK_HOLE`). But before Linux 6.4 it may also report memory with content as a
//! hole, while it collapses small pages into a huge one (fixed by "mm/khugepaged: maintain page cache uptodate flag"). On
//! such kernels each reported hole is also read: a read waits until the collapse is done, and does not allocate memory
//! for a real hole.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::OnceLock;

use rustix::fs::SeekFrom;
use spec::PAGE_SIZE;

use crate::memory::zero::is_zero;

const PAGE: usize = PAGE_SIZE as usize;
/// The first Linux that reports only real holes.
const EXACT_SINCE: (u32, u32) = (6, 4);
/// Bytes of a block, in which `stat` counts what a file occupies.
const BLOCK: u64 = 512;
/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;

/// Limits the work of a search for holes. A guest can make as many holes as it has pages.
#[non_exhaustive]
pub struct HoleBudget<'a> {
    /// How many more holes may be found. Each takes two system calls.
    pub holes: u64,
    /// How many more bytes may be read, on a kernel whose holes must be read.
    pub bytes: u64,
    /// Called every few milliseconds of work: whether to go on.
    pub go_on: &'a mut dyn FnMut() -> bool,
}

impl<'a> HoleBudget<'a> {
    /// No limit but `go_on`.
    pub fn unlimited(go_on: &'a mut dyn FnMut() -> bool) -> Self {
        Self {
            holes: u64::MAX,
            bytes: u64::MAX,
            go_on,
        }
    }
}

impl fmt::Debug for HoleBudget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoleBudget")
            .field("holes", &self.holes)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// How many holes are found between two calls of [`HoleBudget::go_on`].
const ASK_EVERY: u64 = 1024;

impl HoleBudget<'_> {
    /// Takes one hole from the budget. False if nothing is left, or the search must end.
    fn take_hole(&mut self) -> bool {
        let left = self.holes.checked_sub(1);
        self.holes = left.unwrap_or(0);
        left.is_some_and(|left| !left.is_multiple_of(ASK_EVERY) || (self.go_on)())
    }

    /// Takes `bytes` of reading from the budget, like [`HoleBudget::take_hole`].
    fn take_bytes(&mut self, bytes: u64) -> bool {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.unwrap_or(0);
        left.is_some() && (self.go_on)()
    }
}

/// Calls `found` with the holes in `range` of `file`, in rising order. Returns true if these are all holes, and false if the
/// budget was used up or the search was ended.
///
/// # Errors
/// The error of the file.
pub(crate) fn in_file(
    file: &File,
    range: Range<u64>,
    budget: &mut HoleBudget<'_>,
    found: &mut dyn FnMut(Range<u64>),
) -> io::Result<bool> {
    if is_full(file)? {
        return Ok(true);
    }
    let mut at = range.start;
    while at < range.end {
        if !budget.take_hole() {
            return Ok(false);
        }
        let data = seek(file, SeekFrom::Data(at))?.map_or(range.end, |data| data.min(range.end));
        if at < data {
            if seek_is_exact() {
                found(at..data);
            } else if !zero_pages(file, at..data, budget, found)? {
                return Ok(false);
            }
        }
        if data == range.end {
            break;
        }
        at = seek(file, SeekFrom::Hole(data))?.unwrap_or(range.end);
    }
    Ok(true)
}

/// Whether the file has no memory at all: it is one hole.
pub(crate) fn is_empty(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.blocks() == 0)
}

/// Whether the file has memory for all of its size. To search it would cost the kernel a look at every page.
fn is_full(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    Ok(metadata.blocks().saturating_mul(BLOCK) >= metadata.len())
}

/// `None` past the last data or hole.
fn seek(file: &File, whence: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, whence) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Calls `found` with the parts of `range` that read as zero, in whole pages. False as for [`in_file`].
fn zero_pages(
    file: &File,
    range: Range<u64>,
    budget: &mut HoleBudget<'_>,
    found: &mut dyn FnMut(Range<u64>),
) -> io::Result<bool> {
    let mut bytes = vec![0; CHUNK.min(range.end - range.start) as usize];
    let mut hole: Option<Range<u64>> = None;
    let mut at = range.start;
    while at < range.end {
        let length = CHUNK.min(range.end - at);
        if !budget.take_bytes(length) {
            hole.into_iter().for_each(found);
            return Ok(false);
        }
        let chunk = &mut bytes[..length as usize];
        file.read_exact_at(chunk, at)?;
        let (pages, _) = chunk.as_chunks::<PAGE>();
        for (start, page) in (at..).step_by(PAGE).zip(pages) {
            let end = start + PAGE_SIZE;
            match &mut hole {
                _ if !is_zero(page) => {}
                Some(last) if last.end == start => last.end = end,
                _ => hole.replace(start..end).into_iter().for_each(&mut *found),
            }
        }
        at += length;
    }
    hole.into_iter().for_each(found);
    Ok(true)
}

/// Whether this kernel reports only real holes.
fn seek_is_exact() -> bool {
    static EXACT: OnceLock<bool> = OnceLock::new();
    *EXACT.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        version(&release).is_some_and(|version| version >= EXACT_SINCE)
    })
}

/// The version in a release such as `6.1.0-56-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_with_content_that_the_kernel_calls_a_hole_are_not_taken_for_one() {
        let file = tempfile::tempfile().unwrap();
        let pages = 2 * CHUNK / PAGE_SIZE + 3;
        file.set_len(pages * PAGE_SIZE).unwrap();
        // In the middle, and at both sides of the border of two chunks.
        let border = CHUNK / PAGE_SIZE;
        for page in [7, border - 1, border] {
            file.write_all_at(&[1], page * PAGE_SIZE + 4095).unwrap();
        }
        let range = PAGE_SIZE..pages * PAGE_SIZE;
        let mut holes = Vec::new();
        let found = |budget: &mut HoleBudget<'_>, holes: &mut Vec<_>| {
            zero_pages(&file, range.clone(), budget, &mut |hole| holes.push(hole)).unwrap()
        };
        let mut budget = HoleBudget {
            holes: 0,
            bytes: pages * PAGE_SIZE,
            go_on: &mut || true,
        };
        assert!(found(&mut budget, &mut holes));
        let expected = [(1, 7), (8, border - 1), (border + 1, pages)];
        let expected = expected.map(|(first, end)| first * PAGE_SIZE..end * PAGE_SIZE);
        assert_eq!(holes, expected);
    }

    #[test]
    fn a_search_ends_when_its_budget_is_used_up_and_what_it_found_is_right() {
        let file = tempfile::tempfile().unwrap();
        let pages = 8 * ASK_EVERY;
        file.set_len(pages * PAGE_SIZE).unwrap();
        for page in (0..pages).step_by(2) {
            file.write_all_at(&[1], page * PAGE_SIZE).unwrap();
        }
        let search = |holes, bytes, go_on: &mut dyn FnMut() -> bool| {
            let mut found = Vec::new();
            let mut budget = HoleBudget {
                holes,
                bytes,
                go_on,
            };
            let whole = in_file(&file, 0..pages * PAGE_SIZE, &mut budget, &mut |hole| {
                found.push(hole)
            });
            let page_of = |at: u64| at / PAGE_SIZE;
            assert!(
                found
                    .iter()
                    .all(|hole| page_of(hole.start) % 2 == 1 && hole.end - hole.start == PAGE_SIZE)
            );
            (whole.unwrap(), found.len() as u64)
        };
        assert_eq!(search(u64::MAX, u64::MAX, &mut || true), (true, pages / 2));
        let (whole, found) = search(100, u64::MAX, &mut || true);
        assert!(!whole && found <= 100 && found > 90, "{found}");
        let mut asked = 0;
        let (whole, found) = search(u64::MAX, u64::MAX, &mut || {
            asked += 1;
            asked < 2
        });
        assert!(!whole && asked == 2 && found <= 3 * ASK_EVERY, "{found}");
    }

    #[test]
    fn a_kernel_that_is_too_old_or_not_known_is_not_trusted() {
        for (release, exact) in [
            ("6.1.0-56-amd64\n", false),
            ("5.10.0", false),
            ("6.3.13", false),
            ("6.4.0-rc1", true),
            ("6.12.57+deb13-amd64", true),
            ("7.0", true),
            ("", false),
            ("six", false),
        ] {
            let found = version(release).is_some_and(|version| version >= EXACT_SINCE);
            assert_eq!(found, exact, "{release}");
        }
    }
}
