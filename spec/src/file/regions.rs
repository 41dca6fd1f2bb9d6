// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table of memory regions: `gpa u64, length u64` each, ascending. The slots of a region follow those of the one before.

use super::FormatError;
use crate::wire;
use crate::{PAGE_SIZE, PageRange};

/// The regions of `table`.
pub fn regions(table: &[u8]) -> impl Iterator<Item = Result<PageRange, FormatError>> {
    table.chunks(16).map(|entry| {
        let entry: &[u8; 16] = entry
            .try_into()
            .map_err(|_| FormatError::Field("regions"))?;
        let (gpa, length) = (wire::u64_at(entry, 0), wire::u64_at(entry, 8));
        PageRange::inside(gpa, length)
            .filter(|range| range.bytes() == length && range.first() * PAGE_SIZE == gpa)
            .ok_or(FormatError::Field("regions"))
    })
}
