// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The payload of a [`SectionKind::CompressedPages`] section: a prefix, a table of runs, and the pages' bytes, compressed.

use super::{MAX_SECTION_PAGES, PagesPrefix, RUN_BYTES, SectionKind, StreamError};
use crate::wire;

/// How the pages of a section are compressed. Each section is compressed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CompressionMethod {
    /// One LZ4 block, without a frame around it.
    Lz4 = 1,
    /// Zstandard frames (RFC 8878), without a dictionary.
    Zstd = 2,
}

impl CompressionMethod {
    /// Reads a wire value.
    ///
    /// # Errors
    /// [`StreamError::Method`] for an unknown number.
    pub const fn from_raw(raw: u32) -> Result<Self, StreamError> {
        match raw {
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            _ => Err(StreamError::Method(raw)),
        }
    }
}

/// The start of a [`SectionKind::CompressedPages`] payload: `method u32, runs u32, pages u32, content crc u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedPrefix {
    /// How the pages are compressed.
    pub method: CompressionMethod,
    /// Runs in the table that follows.
    pub runs: u32,
    /// Pages in all runs. They are what the compressed bytes yield, no more and no less.
    pub pages: u32,
    /// CRC-32 of the pages' bytes before they were compressed.
    pub content_crc: u32,
}

impl CompressedPrefix {
    /// Bytes of the prefix.
    pub const BYTES: usize = 16;

    /// The most bytes that a payload may have. That of a [`SectionKind::Pages`] section of the same pages has more.
    pub(super) const MAX_PAYLOAD: u64 = PagesPrefix {
        runs: MAX_SECTION_PAGES as u32,
        pages: MAX_SECTION_PAGES as u32,
    }
    .payload_bytes()
        - 1;

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields = [self.method as u32, self.runs, self.pages, self.content_crc];
        for (index, field) in fields.iter().enumerate() {
            wire::put(&mut bytes, index * 4, &field.to_le_bytes());
        }
        bytes
    }

    /// Reads a payload: its prefix, its table of runs, and the compressed bytes.
    ///
    /// # Errors
    /// [`StreamError::Method`] for an unknown method; [`StreamError::Malformed`] if the payload is cut off, says that it has more
    /// pages than a section may have, or is no shorter than the pages would be without compression.
    pub fn split(payload: &[u8]) -> Result<(Self, &[u8], &[u8]), StreamError> {
        let malformed = StreamError::Malformed(SectionKind::CompressedPages);
        let (bytes, rest) = payload
            .split_first_chunk::<{ Self::BYTES }>()
            .ok_or(malformed)?;
        let prefix = Self {
            method: CompressionMethod::from_raw(wire::u32_at(bytes, 0))?,
            runs: wire::u32_at(bytes, 4),
            pages: wire::u32_at(bytes, 8),
            content_crc: wire::u32_at(bytes, 12),
        };
        let fits = prefix.runs >= 1
            && prefix.runs <= prefix.pages
            && u64::from(prefix.pages) <= MAX_SECTION_PAGES
            && (payload.len() as u64) < prefix.plain_payload_bytes();
        if !fits {
            return Err(malformed);
        }
        let (table, compressed) = rest
            .split_at_checked(prefix.runs as usize * RUN_BYTES)
            .ok_or(malformed)?;
        if compressed.is_empty() {
            return Err(malformed);
        }
        Ok((prefix, table, compressed))
    }

    /// Bytes of the pages.
    pub const fn content_bytes(self) -> usize {
        self.pages as usize * crate::PAGE_SIZE as usize
    }

    /// Bytes of the payload of a [`SectionKind::Pages`] section with the same runs.
    pub const fn plain_payload_bytes(self) -> u64 {
        PagesPrefix {
            runs: self.runs,
            pages: self.pages,
        }
        .payload_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const PREFIX: CompressedPrefix = CompressedPrefix {
        method: CompressionMethod::Zstd,
        runs: 2,
        pages: 3,
        content_crc: 0x1234_5678,
    };

    fn payload(prefix: CompressedPrefix, table: usize, compressed: usize) -> Vec<u8> {
        let mut payload = prefix.to_bytes().to_vec();
        payload.resize(payload.len() + table, 7);
        payload.resize(payload.len() + compressed, 9);
        payload
    }

    #[test]
    fn a_payload_is_read_as_it_was_written() {
        for method in [CompressionMethod::Lz4, CompressionMethod::Zstd] {
            let prefix = CompressedPrefix { method, ..PREFIX };
            let payload = payload(prefix, 2 * RUN_BYTES, 5);
            let (read, table, compressed) = CompressedPrefix::split(&payload).unwrap();
            assert_eq!(read, prefix);
            assert_eq!((table, compressed), (&[7; 2 * RUN_BYTES][..], &[9; 5][..]));
        }
    }

    #[test]
    fn a_method_that_does_not_exist_is_named() {
        let mut payload = payload(PREFIX, 2 * RUN_BYTES, 5);
        payload[0] = 3;
        let error = CompressedPrefix::split(&payload).unwrap_err();
        assert_eq!(error, StreamError::Method(3));
        assert!(std::format!("{error}").contains("compression method 3"));
    }

    #[test]
    fn a_payload_that_is_cut_off_is_refused() {
        let whole = payload(PREFIX, 2 * RUN_BYTES, 1);
        assert!(CompressedPrefix::split(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(
                CompressedPrefix::split(&whole[..length]).is_err(),
                "{length}"
            );
        }
    }

    #[test]
    fn a_section_is_shorter_than_the_plain_one_of_its_pages() {
        let plain = PREFIX.plain_payload_bytes() as usize;
        let compressed = |length: usize| {
            let before = CompressedPrefix::BYTES + 2 * RUN_BYTES;
            payload(PREFIX, 2 * RUN_BYTES, length - before)
        };
        assert!(CompressedPrefix::split(&compressed(plain - 1)).is_ok());
        assert!(CompressedPrefix::split(&compressed(plain)).is_err());
        let kinds = [SectionKind::CompressedPages, SectionKind::Pages];
        let [compressed, plain] = kinds.map(SectionKind::max_length);
        assert!(compressed < plain);
    }

    proptest! {
        #[test]
        fn what_is_taken_has_pages_and_no_more_than_a_section_may_have(
            method in 0u32..4, runs in 0u32..300, pages in 0u32..300, length in 0usize..6000,
        ) {
            let mut payload = std::vec![1; CompressedPrefix::BYTES + length];
            for (index, field) in [method, runs, pages].iter().enumerate() {
                wire::put(&mut payload, index * 4, &field.to_le_bytes());
            }
            let taken = CompressedPrefix::split(&payload);
            let table_bytes = runs as usize * RUN_BYTES;
            let plain = 8 + table_bytes + pages as usize * 4096;
            let good = (1..=2).contains(&method) && runs >= 1 && runs <= pages && pages <= 256
                && length > table_bytes && payload.len() < plain;
            prop_assert_eq!(taken.is_ok(), good);
            if let Ok((prefix, table, compressed)) = taken {
                prop_assert_eq!(prefix.content_bytes(), pages as usize * 4096);
                prop_assert_eq!(table.len() + compressed.len(), length);
            }
        }

        #[test]
        fn any_bytes_give_a_payload_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = CompressedPrefix::split(&bytes);
        }
    }
}
