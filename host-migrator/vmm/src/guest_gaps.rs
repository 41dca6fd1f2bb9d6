// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare guest's own account of how evenly its vCPUs run.

use host_migrator::{GuestRam, RamError};
use spec::bare::{GAPS_BYTES, GAPS_GPA};
use spec::gaps::{BINS, Gaps};
use spec::{PAGE_SIZE, PageRange};

/// Reads the gaps of each of the `vcpus` vCPUs. The guest may run. If it is not the bare guest, they mean nothing.
///
/// # Errors
/// [`RamError`] if there is no memory at their place, or its file cannot be read.
pub fn read(ram: &GuestRam, vcpus: u8) -> Result<Vec<Gaps>, RamError> {
    let bytes = u64::from(vcpus) * GAPS_BYTES;
    let pages = bytes.div_ceil(PAGE_SIZE);
    let mut content = vec![0; (pages * PAGE_SIZE) as usize];
    if let Some(range) = PageRange::new(GAPS_GPA / PAGE_SIZE, pages) {
        // Whoever asks must not wait for a page that is missing.
        ram.peek(range, &mut content)?;
    }
    let of_vcpus = content[..bytes as usize].chunks(GAPS_BYTES as usize);
    let read = of_vcpus.map(|bytes| {
        let mut bins = [0; BINS];
        for (bin, bytes) in bins.iter_mut().zip(bytes.as_chunks().0) {
            *bin = u32::from_le_bytes(*bytes).into();
        }
        Gaps::new(bins)
    });
    Ok(read.collect())
}
