// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long a thread waits for a page. The thread is the guest: a vCPU takes the same way, and the cost of leaving the guest comes on
//! top of either answer.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use host_migrator::paging::{
    BareAnswer, Mapping, MissingPages, Paging, PagingOptions, Prefault, Userfaultfd, answer_barely,
};
use host_migrator::snapshot::{SnapshotWriter, open_storage};
use host_migrator::{
    DirectIo, GuestRam, MachineState, RamRegion, Snapshot, SnapshotTarget, Totals,
};
use rustix::fs::Advice;
use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{Bytes, GuestAddress};

use super::median;

const PAGES: u64 = 64 << 10;
/// Pages that the thread touches, at random places.
const TOUCHED: u64 = 4000;
/// A pace at which the pages of the list come in a fifth of a second, and all pages in three seconds.
const PACED: Prefault = Prefault::BytesPerSecond(80_000_000);

/// Who answers.
#[derive(Clone, Copy)]
enum Arm {
    Bare,
    Lacuna(Prefault),
    /// The same with a list of the pages in the order in which they are touched.
    Listed(Prefault),
}

/// Percentiles of one run, microseconds.
struct Waits {
    p50: f64,
    p99: f64,
    /// Milliseconds until all were touched.
    job: f64,
}

pub fn measure(folder: &Path, runs: usize) -> Result<(), Box<dyn Error>> {
    let target = SnapshotTarget {
        path: folder.join("faults"),
        offset: None,
    };
    write(&target, PAGES)?;
    println!(
        "a thread touches {TOUCHED} of {PAGES} missing pages; medians of {runs} runs, in turns"
    );
    println!("file   answered by               p50 us   p99 us   job ms");
    let arms = [
        ("bare read and copy", Arm::Bare),
        ("lacuna, loader off", Arm::Lacuna(Prefault::Off)),
        ("lacuna, loader max", Arm::Lacuna(Prefault::Max)),
        ("lacuna, max, recorded", Arm::Listed(Prefault::Max)),
        ("lacuna, loader paced", Arm::Lacuna(PACED)),
        ("lacuna, paced, recorded", Arm::Listed(PACED)),
    ];
    for (file, is_cold) in [("warm", false), ("cold", true)] {
        let mut found: Vec<Vec<Waits>> = arms.iter().map(|_| Vec::new()).collect();
        for run in 0..runs {
            for (index, (_, arm)) in arms.iter().enumerate() {
                cache(&target.path, is_cold)?;
                found[index].push(touch(&target, *arm, run as u64)?);
            }
        }
        let of = |index: usize, value: fn(&Waits) -> f64| {
            median(found[index].iter().map(value).collect())
        };
        for (index, (name, _)) in arms.iter().enumerate() {
            let (p50, p99) = (of(index, |waits| waits.p50), of(index, |waits| waits.p99));
            let job = of(index, |waits| waits.job);
            println!("{file:<6} {name:<23} {p50:>8.1} {p99:>8.1} {job:>8.1}");
        }
        let ratios = |above: usize, below: usize, value: fn(&Waits) -> f64| {
            let pairs = found[above].iter().zip(&found[below]);
            median(pairs.map(|(a, b)| value(a) / value(b)).collect())
        };
        println!(
            "{file:<6} p50, off / bare: {:.2}; p99, max / off: {:.2}; job, recorded / not: {:.2} at full speed, {:.2} paced",
            ratios(1, 0, |waits| waits.p50),
            ratios(2, 1, |waits| waits.p99),
            ratios(3, 2, |waits| waits.job),
            ratios(5, 4, |waits| waits.job)
        );
    }
    std::fs::remove_file(&target.path)?;
    Ok(())
}

/// A snapshot of `pages` pages, of which every one has content.
pub fn write(target: &SnapshotTarget, pages: u64) -> Result<(), Box<dyn Error>> {
    let memory = memory(pages)?;
    let mut writer = SnapshotWriter::begin(
        open_storage(target, DirectIo::Auto)?,
        memory.layout(),
        b"bench",
    )?;
    let mut random = Random::new(1);
    for first in (0..pages).step_by(64) {
        let words = (0..64 * PAGE_SIZE / 8).flat_map(|_| random.next().to_le_bytes());
        let range = PageRange::new(first, 64).ok_or("no pages")?;
        writer.pages(range, &words.collect::<Vec<u8>>())?;
    }
    writer.finish(&MachineState::default(), Totals::default())?;
    Ok(())
}

/// New memory of `pages` pages.
pub fn memory(pages: u64) -> Result<GuestRam, Box<dyn Error>> {
    Ok(GuestRam::map(vec![RamRegion::new(0, pages * PAGE_SIZE)?])?)
}

/// The file is in the page cache, or not.
pub fn cache(path: &Path, is_cold: bool) -> Result<(), Box<dyn Error>> {
    let file = File::open(path)?;
    if is_cold {
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    } else {
        std::io::copy(&mut &file, &mut std::io::sink())?;
    }
    Ok(())
}

/// `count` of `pages` pages, at random.
pub fn some_pages(pages: u64, count: u64, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    let mut all: Vec<u64> = (0..pages).collect();
    for index in 0..count as usize {
        let other = index + random.below(pages - index as u64) as usize;
        all.swap(index, other);
    }
    all.truncate(count as usize);
    all
}

/// Touches pages at random, and measures each wait.
fn touch(target: &SnapshotTarget, arm: Arm, seed: u64) -> Result<Waits, Box<dyn Error>> {
    let ram = memory(PAGES)?;
    let snapshot = Arc::new(Snapshot::open(target)?);
    let mappings = Mapping::all_of(ram.memory());
    let pages = some_pages(PAGES, TOUCHED, seed);
    let (paging, bare) = match arm {
        Arm::Bare => {
            let mapping = *mappings.first().ok_or("no mapping")?;
            let file = File::open(&target.path)?;
            let at = snapshot.places().page(0);
            // The barest answer from a file: one read of it, one call of the kernel.
            let fill = move |page: u64, content: &mut [u8]| {
                file.read_exact_at(content, at + page * PAGE_SIZE)
            };
            let answer = BareAnswer::Content(Box::new(fill));
            (None, Some(answer_barely(mapping, TOUCHED, answer)?))
        }
        Arm::Lacuna(prefault) | Arm::Listed(prefault) => {
            let mut options = PagingOptions::default();
            if matches!(arm, Arm::Listed(_)) {
                options.first = pages.clone();
            }
            let uffd = Userfaultfd::open(false)?;
            let missing = MissingPages::new(uffd, mappings, snapshot.content()?)?;
            let paging = Paging::start(missing, snapshot, options, Box::new(drop))?;
            paging.set_prefault(prefault);
            (Some(paging), None)
        }
    };
    let mut waits = Vec::with_capacity(pages.len());
    let job = Instant::now();
    for page in pages {
        let at = GuestAddress(page * PAGE_SIZE);
        let began = Instant::now();
        std::hint::black_box(ram.memory().read_obj::<u8>(at)?);
        let wait = began.elapsed().as_secs_f64() * 1e6;
        // Pages that the loader has brought cost no wait, and would make its figure look better than it is.
        if wait > 3.0 {
            waits.push(wait);
        }
    }
    let job = job.elapsed().as_secs_f64() * 1000.0;
    if let Some(bare) = bare {
        bare.join().map_err(|_| "the bare answer panicked")??;
    }
    if let Some(paging) = paging {
        // Nothing waits any more, so the rest may come or not.
        paging.set_prefault(Prefault::Max);
        while !paging.is_complete() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    waits.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (waits.len() as f64 * share) as usize;
        waits.get(index).copied().unwrap_or(f64::NAN)
    };
    Ok(Waits {
        p50: at(0.5),
        p99: at(0.99),
        job,
    })
}
