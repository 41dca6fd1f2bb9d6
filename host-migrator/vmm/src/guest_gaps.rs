// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare guest's own account of how evenly its vCPUs run, and how long its memory takes.

use host_migrator::{GuestRam, RamError};
use spec::bare::{GAPS_BYTES, GAPS_GPA, READ_TIMES_GPA};
use spec::gaps::{Gaps, ReadTimes};
use spec::histogram::{BINS, Histogram};
use spec::{PAGE_SIZE, PageRange};

/// What a vCPU has noticed so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noticed {
    /// The gaps between its beats, in microseconds.
    pub gaps: Gaps,
    /// How long it waited for its memory, in nanoseconds.
    pub reads: ReadTimes,
}

/// Reads what each of the `vcpus` vCPUs has noticed. The guest may run. If it is not the bare guest, the figures mean nothing.
///
/// # Errors
/// [`RamError`] if there is no memory at their place, or its file cannot be read.
pub fn read(ram: &GuestRam, vcpus: u8) -> Result<Vec<Noticed>, RamError> {
    let gaps = histograms(ram, GAPS_GPA, vcpus)?;
    let reads = histograms(ram, READ_TIMES_GPA, vcpus)?;
    let both = gaps.into_iter().zip(reads);
    Ok(both.map(|(gaps, reads)| Noticed { gaps, reads }).collect())
}

/// The histograms of the vCPUs from `gpa` on.
fn histograms<const FIRST: u32, const FINE: u32>(
    ram: &GuestRam,
    gpa: u64,
    vcpus: u8,
) -> Result<Vec<Histogram<FIRST, FINE>>, RamError> {
    let bytes = u64::from(vcpus) * GAPS_BYTES;
    let pages = bytes.div_ceil(PAGE_SIZE);
    let mut content = vec![0; (pages * PAGE_SIZE) as usize];
    if let Some(range) = PageRange::new(gpa / PAGE_SIZE, pages) {
        // Whoever asks must not wait for a page that is missing.
        ram.peek(range, &mut content)?;
    }
    let of_vcpus = content[..bytes as usize].chunks(GAPS_BYTES as usize);
    let read = of_vcpus.map(|bytes| {
        let mut bins = [0; BINS];
        for (bin, bytes) in bins.iter_mut().zip(bytes.as_chunks().0) {
            *bin = u32::from_le_bytes(*bytes).into();
        }
        Histogram::new(bins)
    });
    Ok(read.collect())
}
