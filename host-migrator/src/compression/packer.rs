// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The source's side: compresses the content of one section after the other, and decides for which it is worth the time.
//!
//! A section is sent compressed if that removes an eighth of it or more. After one that did not shrink so far, a sample of each next
//! one is compressed first, and the whole only if the sample shrinks. So content that does not shrink costs little, and a
//! change is noticed with the next section.

use std::fmt;
use std::io;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use spec::PAGE_SIZE;
use spec::stream::{CompressionMethod, MAX_SECTION_PAGES};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::method::{Compression, ZstdLevel};

const PAGE: usize = PAGE_SIZE as usize;
/// What a section has at most.
const MOST_BYTES: usize = MAX_SECTION_PAGES as usize * PAGE;
/// Pages of a sample (`benches/compression.rs` has what it costs).
const SAMPLE_PAGES: usize = 8;
/// A section of no more pages is its own sample.
const FEW_PAGES: usize = 2 * SAMPLE_PAGES;

/// Compresses sections. It allocates nothing for a section.
pub struct Packer {
    method: Method,
    sample: Vec<u8>,
    packed: Vec<u8>,
    /// The last section shrank.
    shrank: bool,
}

/// What takes the place of a section's content.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// How it is compressed.
    pub method: CompressionMethod,
    /// At most seven eighths of the content's bytes.
    pub bytes: &'a [u8],
}

impl Packer {
    /// For `compression`; none if nothing is to be compressed.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(compression: Compression) -> io::Result<Option<Self>> {
        let method = match compression {
            Compression::None => return Ok(None),
            Compression::Lz4 => Method::Lz4(CompressTable::large()),
            Compression::Zstd { level } => Method::Zstd {
                context: Compressor::new(level.get().into())?,
                level,
            },
        };
        Ok(Some(Self {
            method,
            sample: vec![0; SAMPLE_PAGES * PAGE],
            // LZ4 begins only if there is room for content that does not shrink.
            packed: vec![0; get_maximum_output_size(MOST_BYTES)],
            shrank: true,
        }))
    }

    /// Compresses `content`, the pages of one section: at most [`MAX_SECTION_PAGES`]. None: it is to be sent as it is.
    pub fn pack(&mut self, content: &[u8]) -> Option<Packed<'_>> {
        let length = if self.shrank || self.sample_shrinks(content) {
            self.method.shrink(content, &mut self.packed, Effort::Full)
        } else {
            None
        };
        self.shrank = length.is_some();
        Some(Packed {
            method: self.method.of_section(),
            bytes: &self.packed[..length?],
        })
    }

    fn sample_shrinks(&mut self, content: &[u8]) -> bool {
        let pages = content.len() / PAGE;
        if pages <= FEW_PAGES {
            return true;
        }
        for (sampled, page) in self.sample.chunks_exact_mut(PAGE).zip(sampled(pages)) {
            sampled.copy_from_slice(&content[page * PAGE..][..PAGE]);
        }
        let length = (self.method).shrink(&self.sample, &mut self.packed, Effort::Least);
        length.is_some()
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer")
            .field("method", &self.method.of_section())
            .field("shrank", &self.shrank)
            .finish_non_exhaustive()
    }
}

/// The pages of a sample, of a section with so many. Their distance is odd where it can be, so that no pattern hides.
fn sampled(pages: usize) -> impl Iterator<Item = usize> {
    (0..SAMPLE_PAGES).map(move |index| (index * pages / SAMPLE_PAGES + index) % pages)
}

enum Method {
    Lz4(CompressTable),
    Zstd {
        context: Compressor<'static>,
        level: ZstdLevel,
    },
}

/// How hard a method tries.
#[derive(Clone, Copy)]
enum Effort {
    /// As the operator said.
    Full,
    /// To learn whether content shrinks at all.
    Least,
}

impl Method {
    const fn of_section(&self) -> CompressionMethod {
        match self {
            Self::Lz4(_) => CompressionMethod::Lz4,
            Self::Zstd { .. } => CompressionMethod::Zstd,
        }
    }

    /// Compresses `content` to the start of `packed`. Returns how long it is then; none if it has not shrunk by an eighth.
    fn shrink(&mut self, content: &[u8], packed: &mut [u8], effort: Effort) -> Option<usize> {
        let most = (content.len() / 8 * 7).min(packed.len());
        let length = match self {
            Self::Lz4(table) => compress_into_with_table(content, packed, table).ok(),
            Self::Zstd { context, level } => {
                let level = match effort {
                    Effort::Full => *level,
                    Effort::Least => ZstdLevel::MIN,
                };
                let level = CParameter::CompressionLevel(level.get().into());
                // Gives up when it has filled the room.
                (context.set_parameter(level).ok()).and_then(|()| {
                    context
                        .compress_to_buffer(content, &mut packed[..most])
                        .ok()
                })
            }
        };
        length.filter(|length| (1..=most).contains(length))
    }
}

#[cfg(test)]
mod tests {
    use super::super::unpacker::Unpacker;
    use super::*;
    use proptest::prelude::*;
    use spec::stamp::Random;

    const METHODS: [Compression; 3] = [
        Compression::Lz4,
        Compression::Zstd {
            level: ZstdLevel::MIN,
        },
        Compression::Zstd {
            level: ZstdLevel::MAX,
        },
    ];

    fn packer(compression: Compression) -> Packer {
        Packer::new(compression).unwrap().unwrap()
    }

    fn random_pages(count: usize, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        let words = std::iter::repeat_with(|| random.next().to_le_bytes());
        words.take(count * PAGE / 8).flatten().collect()
    }

    /// Pages of a few letters.
    fn text_pages(count: usize, seed: u64) -> Vec<u8> {
        let mut bytes = random_pages(count, seed);
        bytes.iter_mut().for_each(|byte| *byte %= 4);
        bytes
    }

    #[test]
    fn nothing_is_compressed_unless_asked_for() {
        assert!(Packer::new(Compression::None).unwrap().is_none());
    }

    #[test]
    fn content_comes_back_as_it_was() {
        let mut unpacker = Unpacker::default();
        for compression in METHODS {
            let mut packer = packer(compression);
            for pages in [1, 3, 17, 256] {
                let content = text_pages(pages, pages as u64);
                let packed = packer.pack(&content).unwrap();
                assert!(packed.bytes.len() <= content.len() / 8 * 7);
                let back = unpacker.unpack(packed.method, packed.bytes, content.len());
                assert!(back.unwrap() == content, "{compression:?}, {pages} pages");
            }
        }
    }

    #[test]
    fn content_that_does_not_shrink_is_left_alone_whatever_its_size() {
        for compression in METHODS {
            let mut packer = packer(compression);
            for pages in [1, 16, 17, 256] {
                assert!(packer.pack(&random_pages(pages, 7)).is_none());
                assert!(packer.pack(&random_pages(pages, 8)).is_none());
            }
        }
    }

    #[test]
    fn content_that_begins_to_shrink_is_compressed_at_once() {
        for compression in METHODS {
            let mut packer = packer(compression);
            for seed in 0..3 {
                assert!(packer.pack(&random_pages(256, seed)).is_none());
                assert!(packer.pack(&text_pages(256, seed)).is_some());
            }
        }
    }

    #[test]
    fn after_a_failure_a_section_is_left_alone_if_its_sample_does_not_shrink() {
        // Of these pages every one that is sampled is random.
        let mut content = text_pages(256, 1);
        for (page, random) in sampled(256).zip(random_pages(8, 1).chunks_exact(PAGE)) {
            content[page * PAGE..][..PAGE].copy_from_slice(random);
        }
        for compression in METHODS {
            let mut packer = packer(compression);
            assert!(packer.pack(&content).is_some());
            assert!(packer.pack(&random_pages(256, 2)).is_none());
            assert!(packer.pack(&content).is_none(), "{compression:?}");
        }
    }

    #[test]
    fn content_that_shrinks_in_every_second_page_is_noticed() {
        let (random, text) = (random_pages(256, 1), text_pages(256, 1));
        for first in 0..2 {
            let mut content = random.clone();
            for page in (first..256).step_by(2) {
                let bytes = page * PAGE..(page + 1) * PAGE;
                content[bytes.clone()].copy_from_slice(&text[bytes]);
            }
            for compression in METHODS {
                let mut packer = packer(compression);
                assert!(packer.pack(&random).is_none());
                assert!(packer.pack(&content).is_some(), "{compression:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_packed_can_be_unpacked(
            pages in 1usize..40, seed in any::<u64>(), mask in any::<u8>(), method in 0usize..2,
        ) {
            let mut content = random_pages(pages, seed);
            content.iter_mut().for_each(|byte| *byte &= mask);
            let mut packer = packer(METHODS[method]);
            if let Some(packed) = packer.pack(&content) {
                let mut unpacker = Unpacker::default();
                let back = unpacker.unpack(packed.method, packed.bytes, content.len());
                prop_assert!(back.unwrap() == content);
            }
        }
    }
}
