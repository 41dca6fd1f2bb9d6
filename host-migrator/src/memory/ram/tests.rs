// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;
use crate::memory::page_store::PageStore;

fn two_regions() -> GuestRam {
    let regions = [(0, 64 * PAGE_SIZE), (1 << 32, 8 * PAGE_SIZE)];
    let regions = regions.map(|(gpa, len)| RamRegion::new(gpa, len).unwrap());
    GuestRam::map(regions.into()).unwrap()
}

fn pages(first: u64, count: u64) -> PageRange {
    PageRange::new(first, count).unwrap()
}

#[test]
fn what_was_written_is_read_back_and_a_discard_makes_it_zero() {
    let ram = two_regions();
    let content: Vec<u8> = (0..2 * PAGE_SIZE).map(|i| (i % 251) as u8 + 1).collect();
    let range = pages((1 << 20) + 3, 2);
    ram.write(range, &content).unwrap();
    let mut got = vec![0; content.len()];
    ram.read(range, &mut got).unwrap();
    assert_eq!(got, content);
    ram.discard(pages((1 << 20) + 3, 1)).unwrap();
    ram.read(range, &mut got).unwrap();
    assert!(got[..4096].iter().all(|b| *b == 0));
    assert_eq!(got[4096..], content[4096..]);
}

#[test]
fn populated_memory_keeps_its_pages_for_a_guest_and_is_cleared_after_an_attempt() {
    let region = RamRegion::new(0, 64 * PAGE_SIZE).unwrap();
    let file = region.file.try_clone().unwrap();
    let blocks = || rustix::fs::fstat(&file).unwrap().st_blocks as u64 * 512;
    let ram = GuestRam::map(vec![region]).unwrap();
    ram.write(pages(7, 1), &[7; PAGE_SIZE as usize]).unwrap();
    ram.populate().unwrap();
    ram.clear().unwrap();
    assert_eq!(blocks(), ram.pages() * PAGE_SIZE);
    // An attempt that ended early has left something.
    ram.write(pages(9, 1), &[9; PAGE_SIZE as usize]).unwrap();
    ram.clear().unwrap();
    assert_eq!(blocks(), 0);
    let mut got = vec![1; 64 * PAGE_SIZE as usize];
    ram.read(pages(0, 64), &mut got).unwrap();
    assert!(got.iter().all(|byte| *byte == 0));
}

/// Memory of `count` huge pages, or why there is none.
fn huge_memory(count: u64) -> Result<(GuestRam, File), RamError> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
    let len = count * (2 << 20);
    let file = File::from(rustix::fs::memfd_create("huge", flags).map_err(io::Error::from)?);
    // Allocated now: a mapping is given without a page behind it, and then ends the process.
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len).map_err(io::Error::from)?;
    let region = RamRegion {
        gpa: 0,
        len,
        file: file.try_clone()?,
        offset: 0,
    };
    Ok((GuestRam::map(vec![region])?, file))
}

#[test]
fn memory_of_huge_pages_is_written_page_by_page_too() {
    let (ram, _) = match huge_memory(1) {
        Ok(memory) => memory,
        Err(error) => {
            spec_testing::skipped(format_args!(
                "this machine has no huge page to spare ({error})"
            ));
            return;
        }
    };
    let content = vec![7; 2 * PAGE_SIZE as usize];
    ram.write(pages(5, 2), &content).unwrap();
    ram.discard(pages(6, 1)).unwrap();
    let mut got = vec![0; 4 * PAGE_SIZE as usize];
    ram.read(pages(4, 4), &mut got).unwrap();
    let of_page: Vec<u8> = got.chunks(PAGE_SIZE as usize).map(|page| page[9]).collect();
    assert_eq!(of_page, [0, 7, 0, 0]);
}

#[test]
fn a_discard_gives_back_whole_huge_pages_and_makes_parts_of_others_zero() {
    let (ram, file) = match huge_memory(3) {
        Ok(memory) => memory,
        Err(error) => {
            spec_testing::skipped(format_args!(
                "this machine has no three huge pages to spare ({error})"
            ));
            return;
        }
    };
    let per_huge_page = (2 << 20) / PAGE_SIZE;
    let all = pages(0, 3 * per_huge_page);
    ram.write(all, &vec![7; all.bytes() as usize]).unwrap();
    let blocks = || rustix::fs::fstat(&file).unwrap().st_blocks;
    let before = blocks();
    // A page, and from the middle of one huge page to the middle of the last.
    ram.discard(pages(1, 1)).unwrap();
    assert_eq!(blocks(), before);
    let middle = pages(per_huge_page / 2, 2 * per_huge_page);
    ram.discard(middle).unwrap();
    assert_eq!(blocks(), before / 3 * 2);
    let mut got = vec![0; all.bytes() as usize];
    ram.read(all, &mut got).unwrap();
    for (pfn, page) in (0..).zip(got.chunks(PAGE_SIZE as usize)) {
        let gone = pfn == 1 || middle.first() <= pfn && pfn < middle.end();
        let expected = if gone { 0 } else { 7 };
        assert!(page.iter().all(|byte| *byte == expected), "page {pfn}");
    }
}

#[test]
fn pages_outside_the_regions_or_across_two_are_refused() {
    let ram = two_regions();
    let mut out = vec![0; 2 * PAGE_SIZE as usize];
    for range in [
        pages(63, 2),
        pages(64, 2),
        pages((1 << 20) + 7, 2),
        pages(u64::MAX - 2, 2),
    ] {
        assert!(
            matches!(ram.read(range, &mut out), Err(RamError::OutOfRange { .. })),
            "{range:?}"
        );
        assert!(ram.discard(range).is_err(), "{range:?}");
        assert!(ram.write(range, &out).is_err(), "{range:?}");
    }
}

#[test]
fn holes_are_the_pages_nobody_wrote() {
    let ram = two_regions();
    let written = vec![1u8; PAGE_SIZE as usize];
    ram.write(pages(10, 1), &written).unwrap();
    ram.write(pages((1 << 20) + 7, 1), &written).unwrap();
    let in_holes = |pfn| {
        ram.holes()
            .unwrap()
            .iter()
            .any(|h| h.first() <= pfn && pfn < h.end())
    };
    assert!(!in_holes(10) && !in_holes((1 << 20) + 7));
    assert!(in_holes(0) && in_holes(63) && in_holes(1 << 20) && !in_holes(64));
}

#[test]
fn overlapping_and_unaligned_regions_are_refused() {
    let region = |gpa, len| RamRegion::new(gpa, len).unwrap();
    for regions in [
        vec![],
        vec![region(0, 0)],
        vec![region(1, 4096)],
        vec![region(0, 4097)],
        vec![region(0, 8192), region(4096, 4096)],
        vec![region(8192, 4096), region(0, 4096)],
    ] {
        assert!(matches!(
            GuestRam::map(regions),
            Err(RamError::Region { .. })
        ));
    }
}
