// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a page in use contains in our test guests: {address, version, checksum} and words that follow
//! from them, so that a lost, stale, torn or foreign page cannot look right by chance.

use crate::PAGE_SIZE;

/// 64-bit words of a page.
pub const PAGE_WORDS: usize = (PAGE_SIZE / 8) as usize;

/// The stamp of a page: its address, and the number of the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The page's address, as its owner names it (guest-physical in the bare guest, virtual in a
    /// process).
    pub address: u64,
    /// Counts the writes of this page; never 0.
    pub version: u64,
}

/// Why a page does not hold a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StampError {
    /// The checksum does not follow from address and version: never stamped, or torn.
    Checksum,
    /// A stamp of another page.
    Address {
        /// The address found in the page.
        found: u64,
    },
    /// An older or newer write than expected: what a lost write looks like.
    Version {
        /// The version found in the page.
        found: u64,
    },
    /// A later word of the page differs.
    Word {
        /// Its index.
        index: usize,
    },
}

impl Stamp {
    /// The first four words of the page; the fourth is the checksum of the others.
    fn head(self, seed: u64) -> [u64; 4] {
        let sum = mix(self.address ^ mix(self.version ^ mix(seed)));
        [self.address, self.version, seed, sum]
    }

    /// The seed that a stamped page was stamped with.
    pub const fn seed_of(page: &[u64; PAGE_WORDS]) -> u64 {
        page[2]
    }

    /// Fills `page` with this stamp. `seed` tells runs apart.
    pub fn write(self, seed: u64, page: &mut [u64; PAGE_WORDS]) {
        let head = self.head(seed);
        page[..4].copy_from_slice(&head);
        for (index, word) in page.iter_mut().enumerate().skip(4) {
            *word = tail(head[3], index);
        }
    }

    /// Checks every word of `page` against this stamp.
    ///
    /// # Errors
    /// [`StampError`] with the first difference.
    pub fn check(self, seed: u64, page: &[u64; PAGE_WORDS]) -> Result<(), StampError> {
        let found = Self {
            address: page[0],
            version: page[1],
        };
        if page[..4] != found.head(seed) {
            return Err(StampError::Checksum);
        }
        if found.address != self.address {
            return Err(StampError::Address {
                found: found.address,
            });
        }
        if found.version != self.version {
            return Err(StampError::Version {
                found: found.version,
            });
        }
        match (4..PAGE_WORDS).find(|&index| page[index] != tail(page[3], index)) {
            Some(index) => Err(StampError::Word { index }),
            None => Ok(()),
        }
    }
}

/// The word at `index` of a page whose checksum is `sum`: cheap, and different in every word or, in about half of the pages, in
/// every eighth. Compression makes these pages small, and the others not, so that tests meet both.
fn tail(sum: u64, index: usize) -> u64 {
    let index = if sum & 1 == 0 { index / 8 } else { index };
    sum.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A bijective mix of 64 bits (the finalizer of SplitMix64, Steele et al. 2014).
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A small random generator for workloads (SplitMix64): the same seed gives the same choices.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound` (which must not be 0); the bias is below 2^-32 for bounds below 2^32.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_checks_itself_and_nothing_else() {
        let mut page = [0; PAGE_WORDS];
        let stamp = Stamp {
            address: 0x1000,
            version: 3,
        };
        assert_eq!(stamp.check(7, &page), Err(StampError::Checksum));
        stamp.write(7, &mut page);
        assert_eq!(stamp.check(7, &page), Ok(()));
        let other = Stamp {
            address: 0x2000,
            version: 3,
        };
        assert_eq!(
            other.check(7, &page),
            Err(StampError::Address { found: 0x1000 })
        );
        let newer = Stamp {
            address: 0x1000,
            version: 4,
        };
        assert_eq!(newer.check(7, &page), Err(StampError::Version { found: 3 }));
        assert_eq!(stamp.check(8, &page), Err(StampError::Checksum));
    }

    #[test]
    fn a_flipped_bit_in_any_word_is_found() {
        let mut page = [0; PAGE_WORDS];
        for version in 1..5 {
            let stamp = Stamp {
                address: 0x1000,
                version,
            };
            stamp.write(7, &mut page);
            for index in 0..PAGE_WORDS {
                page[index] ^= 1 << (index % 64);
                assert!(stamp.check(7, &page).is_err(), "word {index}");
                page[index] ^= 1 << (index % 64);
            }
        }
    }

    #[test]
    fn about_half_of_the_pages_repeat_their_words() {
        let mut page = [0; PAGE_WORDS];
        let repeating = (1..=1000).filter(|version| {
            let stamp = Stamp {
                address: 0x1000,
                version: *version,
            };
            stamp.write(7, &mut page);
            page[8] == page[9]
        });
        assert!((400..600).contains(&repeating.count()));
    }
}
