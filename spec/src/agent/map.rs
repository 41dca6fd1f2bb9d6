// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The free pages of a range, as bits or as runs, whichever is smaller.
//!
//! `first u64, pages u32, encoding u32`, then for encoding 0 one bit a page, bit `p % 8` of byte `p / 8`, and for
//! encoding 1 pairs of numbers (7 bits a byte, low ones first, the top bit says that more follow): pages in
//! use, free pages.

use crate::{PageRange, wire};

/// The most pages of one map: 256 MiB of guest memory.
pub const MAX_MAP_PAGES: u32 = 65536;
/// Bytes before bits or runs.
const PREFIX: usize = 16;
const BITS: u32 = 0;
const RUNS: u32 = 1;

/// The payload is not a valid map, or names pages outside its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError;

/// Which pages of a range are free, in wire format. The map was checked: every run lies in the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeMap<'a> {
    range: PageRange,
    encoding: u32,
    body: &'a [u8],
}

impl<'a> FreeMap<'a> {
    /// Reads a map and checks all of it.
    ///
    /// # Errors
    /// [`MapError`] for an empty or too long range, an unknown encoding, and bits or runs past the range's end.
    pub fn open(payload: &'a [u8]) -> Result<Self, MapError> {
        let (prefix, body) = payload.split_at_checked(PREFIX).ok_or(MapError)?;
        let pages = wire::u32_at(prefix, 8);
        let range = PageRange::new(wire::u64_at(prefix, 0), u64::from(pages))
            .filter(|_| pages <= MAX_MAP_PAGES)
            .ok_or(MapError)?;
        let map = Self {
            range,
            encoding: wire::u32_at(prefix, 12),
            body,
        };
        let sound = match map.encoding {
            BITS => map.bits_are_sound(),
            RUNS => map.runs_are_sound(),
            _ => false,
        };
        if sound { Ok(map) } else { Err(MapError) }
    }

    /// The range that the map covers.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// The free pages, as runs in rising order that do not touch.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> + use<'a> {
        let Self {
            range,
            encoding,
            body,
        } = *self;
        let mut at = 0;
        let mut bytes = body;
        core::iter::from_fn(move || {
            let (skip, free) = if encoding == BITS {
                next_set(at, range.count(), |index| word_of(body, index))?
            } else {
                next_in_runs(&mut bytes)?
            };
            let first = at + skip;
            at = first + free;
            PageRange::new(range.first() + first, free)
        })
    }

    fn bits_are_sound(&self) -> bool {
        let pages = self.range.count();
        let past_the_end = match pages % 8 {
            0 => 0,
            used => self.body.last().map_or(0, |byte| byte >> used),
        };
        self.body.len() as u64 == pages.div_ceil(8) && past_the_end == 0
    }

    fn runs_are_sound(&self) -> bool {
        let mut bytes = self.body;
        let mut at = 0;
        while !bytes.is_empty() {
            let Some((skip, free)) = next_in_runs(&mut bytes) else {
                return false;
            };
            // Runs do not touch, so only the first may begin without pages in use before it.
            if free == 0 || (skip == 0 && at != 0) {
                return false;
            }
            at += skip + free;
        }
        at <= self.range.count()
    }
}

/// Writes the map of `range`, whose free pages are the set bits of `words` (bit `p % 64` of word `p / 64`, counted from
/// the range's first page), into `payload` and returns its length.
///
/// At most [`MAX_MAP_PAGES`] pages; bits past the range count as not set.
pub fn encode(
    range: PageRange,
    words: &[u64],
    payload: &mut [u8; super::MAX_FRAME_PAYLOAD],
) -> usize {
    let pages = range.count().min(u64::from(MAX_MAP_PAGES));
    let (prefix, body) = payload.split_at_mut(PREFIX);
    let body = &mut body[..pages.div_ceil(8) as usize];
    let (encoding, length) = match put_runs(pages, words, body) {
        Some(length) => (RUNS, length),
        None => {
            put_bits(pages, words, body);
            (BITS, body.len())
        }
    };
    wire::put(prefix, 0, &range.first().to_le_bytes());
    wire::put(prefix, 8, &(pages as u32).to_le_bytes());
    wire::put(prefix, 12, &encoding.to_le_bytes());
    PREFIX + length
}

fn put_bits(pages: u64, words: &[u64], body: &mut [u8]) {
    body.fill(0);
    for (bytes, word) in body.chunks_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
    if !pages.is_multiple_of(8)
        && let Some(last) = body.last_mut()
    {
        *last &= (1 << (pages % 8)) - 1;
    }
}

/// The length of the runs in `body`, or `None` if bits are as short.
fn put_runs(pages: u64, words: &[u64], body: &mut [u8]) -> Option<usize> {
    let (mut at, mut length) = (0, 0);
    let word = |index: usize| words.get(index).copied().unwrap_or(0);
    while let Some((skip, free)) = next_set(at, pages, word) {
        for number in [skip, free] {
            length += put_number(number, body.get_mut(length..)?)?;
        }
        at += skip + free;
    }
    (length < body.len()).then_some(length)
}

/// Word `index` of the bits in `body`; bits past the end are not set.
fn word_of(body: &[u8], index: usize) -> u64 {
    let rest = body.get(index * 8..).unwrap_or_default();
    let mut bytes = [0; 8];
    let count = rest.len().min(8);
    bytes[..count].copy_from_slice(&rest[..count]);
    u64::from_le_bytes(bytes)
}

/// How many bits from page `at` on are not set, and how many after them are set. `None` if none is set.
fn next_set(at: u64, pages: u64, word: impl Fn(usize) -> u64) -> Option<(u64, u64)> {
    let first = find(at, pages, &word)?;
    let end = find(first, pages, |index| !word(index)).unwrap_or(pages);
    Some((first - at, end - first))
}

/// The first page from `at` on whose bit is set.
fn find(at: u64, pages: u64, word: impl Fn(usize) -> u64) -> Option<u64> {
    let mut base = at / 64 * 64;
    let mut mask = u64::MAX << (at % 64);
    while base < pages {
        let bits = word((base / 64) as usize) & mask;
        if bits != 0 {
            let page = base + u64::from(bits.trailing_zeros());
            return (page < pages).then_some(page);
        }
        base += 64;
        mask = u64::MAX;
    }
    None
}

fn next_in_runs(bytes: &mut &[u8]) -> Option<(u64, u64)> {
    Some((take_number(bytes)?, take_number(bytes)?))
}

/// Writes `number`, at most [`MAX_MAP_PAGES`], and returns how many bytes it took; `None` if there is no room.
fn put_number(number: u64, bytes: &mut [u8]) -> Option<usize> {
    let mut left = number;
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (left & 0x7f) as u8;
        left >>= 7;
        if left == 0 {
            return Some(index + 1);
        }
        *byte |= 0x80;
    }
    None
}

/// Reads a number of at most three bytes, which is enough for 65536.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for index in 0..3 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::MAX_FRAME_PAYLOAD;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    fn encoded(range: PageRange, words: &[u64]) -> Vec<u8> {
        let mut payload = [0xee; MAX_FRAME_PAYLOAD];
        let length = encode(range, words, &mut payload);
        payload[..length].to_vec()
    }

    fn free_pages(payload: &[u8]) -> Vec<u64> {
        let map = FreeMap::open(payload).unwrap();
        map.runs().flat_map(|run| run.first()..run.end()).collect()
    }

    proptest! {
        #[test]
        fn what_is_free_comes_back_whichever_way_it_was_written(
            first in 0u64..1 << 40,
            words in proptest::collection::vec(
                prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), Just(0x5555_5555_5555_5555)], 1..40),
            cut in 0u64..64,
        ) {
            let count = words.len() as u64 * 64 - cut;
            let payload = encoded(range(first, count), &words);
            prop_assert!(payload.len() as u64 <= 16 + count.div_ceil(8));
            let expected: Vec<u64> = (0..count)
                .filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 == 1)
                .map(|page| first + page)
                .collect();
            prop_assert_eq!(free_pages(&payload), expected);
        }

        #[test]
        fn no_payload_makes_a_run_outside_of_its_range(payload: Vec<u8>, pages in 1u32..300, encoding in 0u32..3) {
            let mut bytes = [&7u64.to_le_bytes()[..], &pages.to_le_bytes(), &encoding.to_le_bytes()].concat();
            bytes.extend(payload);
            if let Ok(map) = FreeMap::open(&bytes) {
                let mut end = 0;
                for run in map.runs() {
                    prop_assert_eq!(run.intersection(map.range()), Some(run));
                    prop_assert!(run.first() >= end);
                    end = run.end();
                }
            }
        }
    }

    #[test]
    fn a_free_guest_is_a_few_bytes_and_a_fragmented_one_is_a_bit_a_page() {
        let words = [u64::MAX; 1024];
        assert_eq!(encoded(range(0, 65536), &words).len(), 16 + 1 + 3);
        let words = [0x5555_5555_5555_5555; 1024];
        assert_eq!(encoded(range(0, 65536), &words).len(), MAX_FRAME_PAYLOAD);
        assert_eq!(encoded(range(0, 65536), &[]).len(), 16);
    }

    #[test]
    fn bits_and_runs_past_the_end_are_refused() {
        let with = |encoding: u32, body: &[u8]| {
            let prefix = [
                &0u64.to_le_bytes()[..],
                &10u32.to_le_bytes(),
                &encoding.to_le_bytes(),
            ];
            FreeMap::open(&[&prefix.concat(), body].concat()).map(|map| map.runs().count())
        };
        assert_eq!(with(0, &[0xff, 0x03]), Ok(1));
        assert_eq!(with(0, &[0xff, 0x07]), Err(MapError));
        assert_eq!(with(0, &[0xff]), Err(MapError));
        assert_eq!(with(0, &[0xff, 3, 0]), Err(MapError));
        assert_eq!(with(1, &[0, 10]), Ok(1));
        assert_eq!(with(1, &[1, 10]), Err(MapError));
        assert_eq!(with(1, &[0, 0]), Err(MapError));
        assert_eq!(with(1, &[0, 2, 0, 2]), Err(MapError), "runs that touch");
        assert_eq!(with(1, &[1]), Err(MapError));
        assert_eq!(with(1, &[0x81, 0x80, 0x80, 0, 1]), Err(MapError));
        assert_eq!(with(2, &[]), Err(MapError));
    }

    #[test]
    fn a_range_that_is_empty_too_long_or_past_the_address_space_is_refused() {
        for (first, pages) in [(0, 0), (0, MAX_MAP_PAGES + 1), (u64::MAX, 1)] {
            let mut bytes = vec![0; PREFIX];
            bytes[..8].copy_from_slice(&first.to_le_bytes());
            bytes[8..12].copy_from_slice(&pages.to_le_bytes());
            bytes[12..16].copy_from_slice(&RUNS.to_le_bytes());
            assert_eq!(FreeMap::open(&bytes), Err(MapError));
        }
        assert_eq!(FreeMap::open(&[0; 15]), Err(MapError));
    }
}
