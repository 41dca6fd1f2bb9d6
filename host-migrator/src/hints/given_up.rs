// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A page map of the device's, as a bitmap.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use spec::hint_map::word_masks;
use spec::page_map::{PageMap, bytes_for};

use crate::memory::bitmap::MigrationBitmap;
use crate::vm::hint_source::HintError;

/// More regions than any guest has. A file larger than a map with this many regions is not read.
const MOST_REGIONS: u64 = 4096;

/// The pages below `pages` that are set in the map that the first `bytes` bytes of `file` are.
///
/// # Errors
/// [`HintError`] if they are none, or more than a map of such a guest needs.
pub(super) fn read(file: OwnedFd, bytes: u64, pages: u64) -> Result<MigrationBitmap, HintError> {
    if bytes_for(pages, MOST_REGIONS).is_none_or(|most| bytes > most) {
        return Err(HintError::Protocol(format!(
            "a page map of {bytes} bytes for a guest of {pages} pages"
        )));
    }
    let mut content = Vec::new();
    File::from(file).take(bytes).read_to_end(&mut content)?;
    let map = PageMap::parse(&content).map_err(|error| HintError::Protocol(error.to_string()))?;
    let bitmap = MigrationBitmap::new(pages);
    // Bits between regions mean nothing, and there may be very many.
    for (index, mask) in map.regions().flat_map(word_masks) {
        if index < bitmap.word_count() {
            bitmap.merge(index, map.word(index) & mask);
        }
    }
    Ok(bitmap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::PageRange;
    use spec::page_map::{header, region};
    use std::io::{Seek, Write};

    fn file(content: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file.into()
    }

    #[test]
    fn a_map_is_read_and_what_is_none_is_refused() {
        let mut content = header(100, 1).to_vec();
        content.extend(region(PageRange::new(0, 100).unwrap()));
        content.extend([5u64, 1 << 35].iter().flat_map(|word| word.to_le_bytes()));
        let bytes = content.len() as u64;
        let map = read(file(&content), bytes, 100).unwrap();
        assert_eq!((map.load(0), map.load(1), map.count()), (5, 1 << 35, 3));
        let smaller = read(file(&content), bytes, 90).unwrap();
        assert_eq!(smaller.count(), 2);
        for claimed in [0, bytes - 1, bytes + 1, u64::MAX] {
            let result = read(file(&content[..bytes as usize - 1]), claimed, 100);
            assert!(result.is_err(), "{claimed}");
        }
    }
}
