// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holes of memory files: what was never written since the file was made or punched.
//!
//! The kernel knows them (`SEEK_DATA`, `SEEK_HOLE`). But before Linux 6.4 it also calls memory a hole that is full of
//! content, for the moment in which it puts small pages together to a huge one ("mm/khugepaged: maintain page cache
//! uptodate flag" mended that). There, what it calls a hole is read as well: a read waits for such a moment to pass,
//! and gives a hole no memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::fs::SeekFrom;
use spec::PAGE_SIZE;

use crate::zero::is_zero;

const PAGE: usize = PAGE_SIZE as usize;
/// The first Linux whose holes are holes.
const EXACT_SINCE: (u32, u32) = (6, 4);
/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;

/// The holes in `range` of `file`, rising.
///
/// # Errors
/// The error of the file.
pub(crate) fn in_file(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut holes = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let data = seek(file, SeekFrom::Data(at))?.map_or(range.end, |data| data.min(range.end));
        if at < data {
            if seek_is_exact() {
                holes.push(at..data);
            } else {
                zero_pages(file, at..data, &mut holes)?;
            }
        }
        if data == range.end {
            break;
        }
        at = seek(file, SeekFrom::Hole(data))?.unwrap_or(range.end);
    }
    Ok(holes)
}

/// `None` past the last data or hole.
fn seek(file: &File, whence: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, whence) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Adds the parts of `range` that read as zero, in whole pages.
fn zero_pages(file: &File, range: Range<u64>, holes: &mut Vec<Range<u64>>) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK.min(range.end - range.start) as usize];
    let mut at = range.start;
    while at < range.end {
        let length = CHUNK.min(range.end - at) as usize;
        let chunk = &mut bytes[..length];
        file.read_exact_at(chunk, at)?;
        let (pages, _) = chunk.as_chunks::<PAGE>();
        for (start, page) in (at..).step_by(PAGE).zip(pages) {
            let end = start + PAGE_SIZE;
            match holes.last_mut() {
                _ if !is_zero(page) => {}
                Some(last) if last.end == start => last.end = end,
                _ => holes.push(start..end),
            }
        }
        at += length as u64;
    }
    Ok(())
}

/// Whether this kernel calls only holes holes.
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
    fn what_is_called_a_hole_and_has_content_is_none() {
        let file = tempfile::tempfile().unwrap();
        let pages = 2 * CHUNK / PAGE_SIZE + 3;
        file.set_len(pages * PAGE_SIZE).unwrap();
        // In the middle, and at both sides of the border of two chunks.
        let border = CHUNK / PAGE_SIZE;
        for page in [7, border - 1, border] {
            file.write_all_at(&[1], page * PAGE_SIZE + 4095).unwrap();
        }
        let mut holes = Vec::new();
        zero_pages(&file, PAGE_SIZE..pages * PAGE_SIZE, &mut holes).unwrap();
        let expected = [(1, 7), (8, border - 1), (border + 1, pages)];
        let expected = expected.map(|(first, end)| first * PAGE_SIZE..end * PAGE_SIZE);
        assert_eq!(holes, expected);
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
