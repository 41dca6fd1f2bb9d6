// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether one userfaultfd is enough for several vCPUs: threads touch missing pages of a memory with one descriptor, and of one in two
//! halves, each with a descriptor of its own. As many threads answer in all.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use host_migrator::paging::{Mapping, MissingPages, Paging, PagingOptions, Prefault, Userfaultfd};
use host_migrator::{GuestRam, Snapshot, SnapshotTarget};
use spec::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress};

use super::faults::{cache, memory, some_pages, write};
use super::median;

/// Pages of half of the memory.
const HALF: u64 = 16 << 10;
/// Pages that are touched in all.
const TOUCHED: u64 = 8000;
/// Threads that answer in all.
const ANSWERING: usize = 2;

/// A part of the memory, and who brings its pages.
struct Part {
    ram: GuestRam,
    paging: Paging,
}

pub fn measure(folder: &Path, runs: usize) -> Result<(), Box<dyn Error>> {
    println!(
        "pages a second that threads get which touch {TOUCHED} missing pages, file in the page cache; medians of {runs} runs, in turns"
    );
    println!("threads   one descriptor   two descriptors   two / one");
    let file = |name: &str, pages| -> Result<SnapshotTarget, Box<dyn Error>> {
        let path = folder.join(name);
        let target = SnapshotTarget { path, offset: None };
        write(&target, pages)?;
        Ok(target)
    };
    let (whole, half) = (file("whole", 2 * HALF)?, file("half", HALF)?);
    for vcpus in [1, 2, 4] {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for run in 0..runs as u64 {
            one.push(rate(&[&whole], 2 * HALF, vcpus, run)?);
            two.push(rate(&[&half, &half], HALF, vcpus, run)?);
        }
        let ratio = median(two.iter().zip(&one).map(|(two, one)| two / one).collect());
        println!(
            "{vcpus:>7}   {:>14.0}   {:>15.0}   {ratio:>9.2}",
            median(one),
            median(two)
        );
    }
    std::fs::remove_file(&whole.path)?;
    Ok(std::fs::remove_file(&half.path)?)
}

/// Pages a second that `vcpus` threads get of the memory in `files`, each of which has `pages` pages.
fn rate(
    files: &[&SnapshotTarget],
    pages: u64,
    vcpus: u64,
    seed: u64,
) -> Result<f64, Box<dyn Error>> {
    let threads = NonZeroUsize::new(ANSWERING / files.len()).ok_or("no thread answers")?;
    let part = |target: &&SnapshotTarget| -> Result<Part, Box<dyn Error>> {
        cache(&target.path, false)?;
        let (ram, snapshot) = (memory(pages)?, Arc::new(Snapshot::open(target)?));
        let (uffd, mappings) = (Userfaultfd::open(false)?, Mapping::all_of(ram.memory()));
        let missing = MissingPages::new(uffd, mappings, snapshot.content()?)?;
        let options = PagingOptions {
            threads,
            ..PagingOptions::default()
        };
        let paging = Paging::start(missing, snapshot, options, Box::new(drop))?;
        Ok(Part { ram, paging })
    };
    let parts = files.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    let of_part = TOUCHED / files.len() as u64;
    let wanted = some_pages(pages, of_part, seed);
    let began = Instant::now();
    let touched: Result<(), vm_memory::GuestMemoryError> = thread::scope(|scope| {
        let touch = |vcpu: u64| {
            let of_vcpu = wanted.iter().skip(vcpu as usize).step_by(vcpus as usize);
            of_vcpu
                .flat_map(|page| parts.iter().map(move |part| (part, page)))
                .try_for_each(|(part, page)| {
                    let at = GuestAddress(page * PAGE_SIZE);
                    std::hint::black_box(part.ram.memory().read_obj::<u8>(at)?);
                    Ok(())
                })
        };
        let started: Vec<_> = (0..vcpus)
            .map(|vcpu| scope.spawn(move || touch(vcpu)))
            .collect();
        started.into_iter().try_for_each(|vcpu| {
            vcpu.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    });
    touched?;
    let seconds = began.elapsed().as_secs_f64();
    for part in &parts {
        // Nothing waits any more, so the rest may come or not.
        part.paging.set_prefault(Prefault::Max);
        while !part.paging.is_complete() {
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    Ok(TOUCHED as f64 / seconds)
}
