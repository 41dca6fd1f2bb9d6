// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The destination's side: decompresses the content of one section after the other. The bytes may be anybody's.

use std::fmt;
use std::io;

use lz4_flex::block::decompress_into;
use spec::stream::CompressionMethod;
use zstd::bulk::Decompressor;

/// The content of a section that cannot be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The bytes are not what the method makes, or more than the section's pages would come out.
    #[error("the pages of a section cannot be decompressed ({method:?}): {reason}")]
    Invalid {
        /// How they are compressed.
        method: CompressionMethod,
        /// What the method says.
        reason: String,
    },
    /// Less came out than the section's pages.
    #[error("a section decompresses to {found} bytes, and its pages have {expected}")]
    Short {
        /// The bytes of its pages.
        expected: usize,
        /// What came out.
        found: usize,
    },
    /// What came out is not what was compressed.
    #[error("the checksum of a section's decompressed pages is wrong")]
    Checksum,
    /// There is not enough memory to decompress.
    #[error("nothing can be decompressed: {0}")]
    NoMemory(#[source] io::Error),
}

/// Decompresses sections. It allocates what the largest section needs, once.
#[derive(Default)]
pub struct Unpacker {
    content: Vec<u8>,
    zstd: Option<Decompressor<'static>>,
}

impl Unpacker {
    /// The `bytes` bytes that `packed` yields. Its decompression never gets room for more, so the caller must have bounded them.
    ///
    /// # Errors
    /// [`UnpackError`] if `packed` yields more or less than that.
    pub fn unpack(
        &mut self,
        method: CompressionMethod,
        packed: &[u8],
        bytes: usize,
    ) -> Result<&[u8], UnpackError> {
        if self.content.len() < bytes {
            self.content.resize(bytes, 0);
        }
        let content = &mut self.content[..bytes];
        let unpacked = match method {
            CompressionMethod::Lz4 => {
                decompress_into(packed, content).map_err(|error| error.to_string())
            }
            CompressionMethod::Zstd => {
                let context = match &mut self.zstd {
                    Some(context) => context,
                    none => none.insert(Decompressor::new().map_err(UnpackError::NoMemory)?),
                };
                (context.decompress_to_buffer(packed, content)).map_err(|error| error.to_string())
            }
        };
        match unpacked {
            Ok(found) if found == bytes => Ok(content),
            Ok(found) => Err(UnpackError::Short {
                expected: bytes,
                found,
            }),
            Err(reason) => Err(UnpackError::Invalid { method, reason }),
        }
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker")
            .field("room", &self.content.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const METHODS: [CompressionMethod; 2] = [CompressionMethod::Lz4, CompressionMethod::Zstd];

    fn packed(method: CompressionMethod, content: &[u8]) -> Vec<u8> {
        match method {
            CompressionMethod::Lz4 => lz4_flex::block::compress(content),
            CompressionMethod::Zstd => zstd::bulk::compress(content, 1).unwrap(),
        }
    }

    #[test]
    fn a_bomb_gets_no_more_room_than_its_section_has_pages() {
        // 64 MiB of zeros, in a few kilobytes.
        for method in METHODS {
            let bomb = packed(method, &vec![0; 64 << 20]);
            assert!(bomb.len() < 1 << 20);
            let mut unpacker = Unpacker::default();
            let error = unpacker.unpack(method, &bomb, 4096).unwrap_err();
            assert!(matches!(error, UnpackError::Invalid { .. }), "{error}");
            assert_eq!(unpacker.content.capacity(), 4096);
        }
    }

    #[test]
    fn a_section_that_yields_too_little_is_refused() {
        for method in METHODS {
            let packed = packed(method, &[7; 4096]);
            let error = Unpacker::default()
                .unpack(method, &packed, 8192)
                .unwrap_err();
            assert!(
                matches!(
                    error,
                    UnpackError::Short {
                        expected: 8192,
                        found: 4096
                    }
                ),
                "{error}"
            );
        }
    }

    #[test]
    fn bytes_that_are_cut_off_are_refused() {
        let content: Vec<u8> = (0..8192u32).map(|index| (index % 251) as u8).collect();
        for method in METHODS {
            let whole = packed(method, &content);
            let mut unpacker = Unpacker::default();
            for length in 0..whole.len() {
                let error = unpacker.unpack(method, &whole[..length], content.len());
                assert!(error.is_err(), "{method:?}, {length} bytes");
            }
            assert!(unpacker.unpack(method, &whole, content.len()).unwrap() == content);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_content_of_the_right_size_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 1..300), zstd: bool, magic: bool,
        ) {
            let method = METHODS[usize::from(zstd)];
            let mut packed = bytes;
            if magic {
                packed.splice(..0, [0x28, 0xb5, 0x2f, 0xfd]);
            }
            if let Ok(content) = Unpacker::default().unpack(method, &packed, 4096) {
                prop_assert_eq!(content.len(), 4096);
            }
        }

        #[test]
        fn a_changed_byte_gives_content_of_the_right_size_or_an_error(at: prop::sample::Index, to: u8, zstd: bool) {
            let method = METHODS[usize::from(zstd)];
            let content: Vec<u8> = (0..16384u32).map(|index| ((index * index) >> 7) as u8).collect();
            let mut packed = packed(method, &content);
            let at = at.index(packed.len());
            packed[at] = to;
            if let Ok(content) = Unpacker::default().unpack(method, &packed, 16384) {
                prop_assert_eq!(content.len(), 16384);
            }
        }
    }
}
