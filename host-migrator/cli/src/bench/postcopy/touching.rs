// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that touch missing pages and wait for them, as vCPUs do.

use std::io;
use std::thread;
use std::time::Instant;

use host_migrator::{GuestRam, RamError};
use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::super::BenchError;
use super::record::Sample;

/// A touch that takes less found its page there: it would make the figures of waits look better than they are.
const A_WAIT_US: f64 = 3.0;

/// `count` of the numbers below `below`, each at most once, at random.
pub(super) fn some_of(below: u64, count: u64, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    let mut all: Vec<u64> = (0..below).collect();
    for index in 0..count.min(below) {
        let other = index + random.below(below - index);
        all.swap(index as usize, other as usize);
    }
    all.truncate(count as usize);
    all
}

/// `threads` threads touch the `pages` of `ram`, each its share. Where there is a `source`, what they find is compared with it.
///
/// # Errors
/// [`BenchError`] if memory cannot be read.
pub(super) fn touch(
    ram: &GuestRam,
    pages: &[u64],
    threads: usize,
    source: Option<&GuestRam>,
) -> Result<Sample, BenchError> {
    let began = Instant::now();
    let waits: Vec<Vec<f64>> = thread::scope(|scope| {
        let touching = |thread: usize| {
            let share = pages.iter().skip(thread).step_by(threads);
            scope.spawn(move || share.map(|page| wait_for(ram, *page)).collect())
        };
        let threads: Vec<_> = (0..threads).map(touching).collect();
        (threads.into_iter())
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<Result<_, GuestMemoryError>>()
    })
    .map_err(|error| BenchError::io("cannot touch a page")(io::Error::other(error)))?;
    let seconds = began.elapsed().as_secs_f64();
    let mut waits: Vec<f64> = waits
        .into_iter()
        .flatten()
        .filter(|wait| *wait > A_WAIT_US)
        .collect();
    waits.sort_by(f64::total_cmp);
    let mut sample = Sample {
        per_s: Some(pages.len() as f64 / seconds),
        ..Sample::of_waits(&waits)
    };
    if let Some(source) = source {
        sample.pages_compared = pages.len() as u64;
        sample.pages_wrong = wrong(ram, source, pages)?;
    }
    Ok(sample)
}

/// Microseconds that a touch of `page` takes.
fn wait_for(ram: &GuestRam, page: u64) -> Result<f64, GuestMemoryError> {
    let at = GuestAddress(page * PAGE_SIZE);
    let began = Instant::now();
    std::hint::black_box(ram.memory().read_obj::<u8>(at)?);
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// How many of `pages` differ in `ram` and `source`.
pub(super) fn wrong(ram: &GuestRam, source: &GuestRam, pages: &[u64]) -> Result<u64, RamError> {
    let (mut here, mut there) = (vec![0; PAGE_SIZE as usize], vec![0; PAGE_SIZE as usize]);
    let mut wrong = 0;
    for page in pages.iter().filter_map(|page| PageRange::new(*page, 1)) {
        ram.read(page, &mut here)?;
        source.read(page, &mut there)?;
        wrong += u64::from(here != there);
    }
    Ok(wrong)
}
