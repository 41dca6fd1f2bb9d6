// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::PageRange;
use crate::stream::{MAX_DESCRIPTION, MAX_STATE_BYTES, StatePrefix, Totals};
use crate::wire;

const ID: SnapshotId = SnapshotId::new([7; 16]);
const OTHER: SnapshotId = SnapshotId::new([8; 16]);

fn header() -> Header {
    Header {
        id: ID,
        sizes: Sizes {
            pages: 3 * BITMAP_BLOCK_PAGES + 5,
            regions: 2,
            description_bytes: 100,
        },
        regions_crc: 0x1234_5678,
        description_crc: 0x9abc_def0,
        half: None,
    }
}

fn half() -> Half {
    Half {
        side: Side::Destination,
        session: 0x0123_4567_89ab_cdef,
        number: 3,
    }
}

fn state() -> StateHeader {
    StateHeader {
        version: 3,
        name_bytes: 5,
        length: 1000,
        payload_crc: 77,
    }
}

fn commit() -> Commit {
    Commit {
        sections: 4,
        state_bytes: 1000,
        pages: 12,
        length: 1 << 30,
        totals: Totals {
            pages_sent: 14,
            pages_zero: 1,
            pages_discarded: 2,
            rounds: 3,
            bytes: 14 << 12,
        },
        known: 0,
    }
}

/// `bytes` with `field` at `at`, and a right checksum.
fn with<const N: usize>(mut bytes: [u8; N], at: usize, field: &[u8]) -> [u8; N] {
    wire::put(&mut bytes, at, field);
    wire::seal(&mut bytes);
    bytes
}

#[test]
fn everything_is_read_as_it_was_written() {
    let bytes = header().to_bytes().unwrap();
    let (read, places) = Header::from_bytes(&bytes).unwrap();
    assert_eq!(read, header());
    assert_eq!(places, header().sizes.places().unwrap());
    let entry = Entry::from_bytes(&state().to_bytes(ID), ID, 0, 0);
    assert_eq!(entry, Ok(Entry::State(state())));
    let entry = Entry::from_bytes(&commit().to_bytes(ID), ID, 4, 1000);
    assert_eq!(entry, Ok(Entry::Commit(commit())));
}

#[test]
fn the_parts_are_aligned_do_not_overlap_and_follow_each_other() {
    for description_bytes in [0, 1, 53_248, 53_249, MAX_DESCRIPTION as u32] {
        for pages in [
            1,
            BITMAP_BLOCK_PAGES,
            BITMAP_BLOCK_PAGES + 1,
            1 << 20,
            MAX_PAGES,
        ] {
            let sizes = Sizes {
                pages,
                regions: 1,
                description_bytes,
            };
            let places = sizes.places().unwrap();
            let Places {
                bitmap_at,
                known_at,
                checksums_at,
                pages_at,
                state_at,
            } = places;
            for at in [bitmap_at, known_at, checksums_at, pages_at, state_at] {
                assert_eq!(at % ALIGNMENT, 0);
            }
            assert!(DESCRIPTION_AT + u64::from(description_bytes) <= bitmap_at);
            assert!(places.bitmap_block(Bitmap::Pages, sizes.bitmap_blocks()) <= known_at);
            assert!(places.checksum(pages) <= pages_at);
            assert!(places.page(pages) <= state_at);
            assert!(places.most_bytes() < 1 << 53);
        }
    }
}

#[test]
fn sizes_that_no_file_can_have_are_refused_by_name() {
    let good = header().sizes;
    let bad = [
        ("pages", Sizes { pages: 0, ..good }),
        (
            "pages",
            Sizes {
                pages: MAX_PAGES + 1,
                ..good
            },
        ),
        ("regions", Sizes { regions: 0, ..good }),
        (
            "regions",
            Sizes {
                regions: MAX_REGIONS + 1,
                ..good
            },
        ),
        (
            "regions",
            Sizes {
                regions: 2,
                pages: 1,
                ..good
            },
        ),
        (
            "description length",
            Sizes {
                description_bytes: MAX_DESCRIPTION as u32 + 1,
                ..good
            },
        ),
    ];
    for (name, sizes) in bad {
        assert_eq!(sizes.places(), Err(FormatError::Field(name)), "{sizes:?}");
        let header = Header { sizes, ..header() };
        assert_eq!(header.to_bytes(), Err(FormatError::Field(name)));
    }
}

#[test]
fn each_field_of_a_header_is_checked_and_named() {
    let bytes = header().to_bytes().unwrap();
    let refused = |at, field: &[u8]| Header::from_bytes(&with(bytes, at, field)).unwrap_err();
    assert_eq!(refused(0, b"LACUNA\r\n"), FormatError::Magic);
    assert_eq!(refused(8, &[2]), FormatError::Version(2));
    for (at, name) in [
        (12, "page size"),
        (32, "state_at"),
        (35, "checksums_at"),
        (56, "bitmap_at"),
        (64, "checksums_at"),
        (72, "pages_at"),
        (80, "state_at"),
        (88, "reserved"),
        (4091, "reserved"),
    ] {
        let changed = bytes[at] ^ 0x80;
        assert_eq!(
            refused(at, &[changed]),
            FormatError::Field(name),
            "byte {at}"
        );
    }
    assert_eq!(refused(40, &[0]), FormatError::Field("regions"));
    assert_eq!(refused(38, &[1]), FormatError::Field("pages"));
    assert_eq!(refused(51, &[1]), FormatError::Field("description length"));
}

#[test]
fn a_header_with_any_bit_flipped_is_refused() {
    let good = header().to_bytes().unwrap();
    for bit in 0..HEADER_BYTES * 8 {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::from_bytes(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn a_part_of_the_state_or_a_commit_record_with_any_bit_flipped_is_refused() {
    for good in [state().to_bytes(ID), commit().to_bytes(ID)] {
        for bit in 0..ENTRY_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Entry::from_bytes(&bytes, ID, 0, 0).is_err(), "bit {bit}");
        }
    }
    assert_eq!(
        Entry::from_bytes(&[0; ENTRY_BYTES], ID, 0, 0),
        Err(FormatError::NoEntry)
    );
}

#[test]
fn what_an_earlier_snapshot_has_left_is_not_taken_for_this_one() {
    for bytes in [state().to_bytes(OTHER), commit().to_bytes(OTHER)] {
        let read = Entry::from_bytes(&bytes, ID, 0, 0);
        assert_eq!(read, Err(FormatError::OtherSnapshot));
    }
    let bytes = BitmapBlock::EMPTY.to_bytes(OTHER, Bitmap::Pages, 0);
    let read = BitmapBlock::from_bytes(&bytes, ID, Bitmap::Pages, 0, 100);
    assert_eq!(
        read,
        Err(FormatError::Bitmap {
            bitmap: Bitmap::Pages,
            block: 0
        })
    );
}

#[test]
fn a_state_that_is_too_large_is_refused_before_anything_is_allocated() {
    let part = StatePrefix::MAX_PART;
    let read = |header: StateHeader, sections, before| {
        Entry::from_bytes(&header.to_bytes(ID), ID, sections, before)
    };
    let largest = StateHeader {
        length: part,
        ..state()
    };
    assert!(read(largest, 0, 0).is_ok());
    assert!(read(largest, MAX_STATE_SECTIONS - 1, MAX_STATE_BYTES - part).is_ok());
    let bad = [
        (
            StateHeader {
                length: part + 1,
                ..state()
            },
            0,
            0,
        ),
        (
            StateHeader {
                length: u64::MAX,
                ..state()
            },
            0,
            0,
        ),
        (
            StateHeader {
                name_bytes: 0,
                ..state()
            },
            0,
            0,
        ),
        (
            StateHeader {
                name_bytes: 256,
                ..state()
            },
            0,
            0,
        ),
        (largest, MAX_STATE_SECTIONS, 0),
        (largest, 1, MAX_STATE_BYTES - part + 1),
    ];
    for (header, sections, before) in bad {
        assert_eq!(
            read(header, sections, before),
            Err(FormatError::State),
            "{header:?}"
        );
    }
    let reserved = with(state().to_bytes(ID), 60, &[1]);
    assert_eq!(
        Entry::from_bytes(&reserved, ID, 0, 0),
        Err(FormatError::State)
    );
}

#[test]
fn a_commit_record_that_does_not_agree_says_what_differs() {
    let sizes = header().sizes;
    let check = |commit: Commit| commit.check(sizes, 4, 1000, 1 << 30);
    assert_eq!(check(commit()), Ok(()));
    let bad = [
        (
            "number of sections",
            Commit {
                sections: 5,
                ..commit()
            },
        ),
        (
            "size of the machine's state",
            Commit {
                state_bytes: 999,
                ..commit()
            },
        ),
        (
            "length",
            Commit {
                length: 1,
                ..commit()
            },
        ),
        (
            "number of pages",
            Commit {
                pages: sizes.pages + 1,
                ..commit()
            },
        ),
    ];
    for (name, commit) in bad {
        assert_eq!(check(commit), Err(FormatError::Commit(name)));
    }
}

#[test]
fn a_bit_of_the_bitmap_that_flips_or_comes_to_another_place_is_noticed() {
    let mut block = BitmapBlock::EMPTY;
    block.words[0] = 1;
    block.words[BITMAP_BLOCK_WORDS - 1] = 1 << 63;
    let pages = 3 * BITMAP_BLOCK_PAGES;
    let good = block.to_bytes(ID, Bitmap::Pages, 1);
    assert_eq!(
        BitmapBlock::from_bytes(&good, ID, Bitmap::Pages, 1, pages),
        Ok(block)
    );
    assert!(block.has(BITMAP_BLOCK_PAGES) && block.has(2 * BITMAP_BLOCK_PAGES - 1));
    assert!(!block.has(BITMAP_BLOCK_PAGES + 1));
    assert_eq!(block.pages(), 2);
    for bit in 0..BITMAP_BLOCK_BYTES * 8 {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damaged = Err(FormatError::Bitmap {
            bitmap: Bitmap::Pages,
            block: 1,
        });
        assert_eq!(
            BitmapBlock::from_bytes(&bytes, ID, Bitmap::Pages, 1, pages),
            damaged,
            "bit {bit}"
        );
    }
    assert!(BitmapBlock::from_bytes(&good, ID, Bitmap::Pages, 2, pages).is_err());
    // The last slot of the block does not exist.
    assert!(
        BitmapBlock::from_bytes(&good, ID, Bitmap::Pages, 1, 2 * BITMAP_BLOCK_PAGES - 1).is_err()
    );
    assert!(BitmapBlock::from_bytes(&good, ID, Bitmap::Pages, 1, 0).is_err());
    // It is not taken for a block of the other bitmap.
    assert!(BitmapBlock::from_bytes(&good, ID, Bitmap::Known, 1, pages).is_err());
}

#[test]
fn a_half_says_whose_it_is_and_is_not_taken_for_a_whole_snapshot() {
    let header = Header {
        half: Some(half()),
        ..header()
    };
    let bytes = header.to_bytes().unwrap();
    let (read, places) = Header::from_bytes(&bytes).unwrap();
    assert_eq!(read, header);
    let known = places.bitmap_block(Bitmap::Known, header.sizes.bitmap_blocks());
    assert!(places.bitmap_at < places.known_at && known <= places.checksums_at);
    let whole = Header::from_bytes(&with(bytes, 0, &MAGIC));
    assert!(whole.is_err(), "{whole:?}");
    let refused = |at, field: &[u8]| Header::from_bytes(&with(bytes, at, field)).unwrap_err();
    assert_eq!(refused(88, &[1]), FormatError::Field("known_at"));
    for side in [0, 3] {
        assert_eq!(refused(112, &[side]), FormatError::Field("side"));
    }
    assert_eq!(refused(116, &[1]), FormatError::Field("reserved"));
    for bit in 0..HEADER_BYTES * 8 {
        let mut bytes = bytes;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::from_bytes(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn halves_of_one_hand_over_have_its_session_and_its_number() {
    let source = Half {
        side: Side::Source,
        ..half()
    };
    assert!(source.is_of_same_hand_over(&half()));
    let earlier = Half {
        number: 2,
        ..half()
    };
    let other = Half {
        session: 1,
        ..half()
    };
    assert!(!source.is_of_same_hand_over(&earlier) && !source.is_of_same_hand_over(&other));
}

#[test]
fn the_checksum_of_a_page_of_which_all_is_lost_does_not_look_right() {
    // A hole where page and checksum were.
    assert_ne!(page_checksum(&[0; 4096]), 0);
}

#[test]
fn regions_are_whole_pages() {
    let table = |entries: &[[u64; 2]]| -> Vec<u8> {
        entries
            .iter()
            .flatten()
            .flat_map(|it| it.to_le_bytes())
            .collect()
    };
    let good = table(&[[0, 4096], [1 << 32, 8192]]);
    let read: Result<Vec<_>, _> = regions(&good).collect();
    let pages = |first, count| PageRange::new(first, count).unwrap();
    assert_eq!(read, Ok(std::vec![pages(0, 1), pages(1 << 20, 2)]));
    for bad in [[0, 0], [1, 4096], [0, 4095], [u64::MAX - 4095, 8192]] {
        assert!(regions(&table(&[bad])).any(|read| read.is_err()), "{bad:?}");
    }
    assert!(regions(&good[..20]).any(|read| read.is_err()));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), ENTRY_BYTES), sections in 0usize..2000, before: u64) {
        let mut bytes: [u8; ENTRY_BYTES] = bytes.try_into().unwrap();
        let _ = Entry::from_bytes(&bytes, ID, sections, before);
        bytes[..4].copy_from_slice(b"STAT");
        bytes[8..24].copy_from_slice(&ID.to_bytes());
        bytes[40..124].fill(0);
        wire::seal(&mut bytes);
        if let Ok(Entry::State(header)) = Entry::from_bytes(&bytes, ID, sections, before) {
            prop_assert!(header.payload_bytes() <= MAX_STATE_AREA);
        }
    }

    #[test]
    fn a_bitmap_block_is_read_as_it_was_written(slots in proptest::collection::vec(0..BITMAP_BLOCK_PAGES, 0..50), block in 0u64..5) {
        let mut bits = BitmapBlock::EMPTY;
        for slot in &slots {
            bits.words[(slot / 64) as usize] |= 1 << (slot % 64);
        }
        let pages = 5 * BITMAP_BLOCK_PAGES;
        let read = BitmapBlock::from_bytes(&bits.to_bytes(ID, Bitmap::Pages, block), ID, Bitmap::Pages, block, pages).unwrap();
        prop_assert_eq!(read, bits);
        for slot in slots {
            prop_assert!(read.has(BitmapBlock::first_slot(block) + slot));
        }
    }
}
