// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Gives a guest that has arrived its huge pages again.
//!
//! Arriving pages are written through the memory file, and for such a write the kernel allocates small pages, whatever
//! the mapping asked for. So a guest would lose its huge pages at each migration. While the guest runs, blocks that
//! arrived whole are made huge pages. Other blocks stay as they are, because a huge page would take memory for pages that
//! nobody uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use host_migrator::{GuestRam, HoleBudget, MigrationBitmap};
use spec::{PAGE_SIZE, PageRange};

use crate::advice;

/// Pages of a huge page: 2 MiB.
const BLOCK: u64 = 512;
/// The pause after each block, as a multiple of the time that the block took.
const PAUSE: u32 = 3;
/// The kernel's setting for huge pages of memory files.
const ALLOWED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The thread that makes huge pages. It ends by itself, or when this is dropped.
#[derive(Debug)]
pub struct HugePages {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl HugePages {
    /// Starts the thread for `ram`. Does nothing if the host allows no huge pages for memory files.
    pub fn restore(ram: &Arc<GuestRam>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ram, told) = (Arc::clone(ram), Arc::clone(&stop));
        let thread = thread::Builder::new().name("huge-pages".into());
        let thread = thread.spawn(move || {
            if are_allowed() {
                put_together(&ram, &told)
            } else {
                0
            }
        });
        Self {
            stop,
            thread: thread
                .inspect_err(|error| log::warn!("the guest stays on small pages: {error}"))
                .ok(),
        }
    }

    /// Tells the thread to end soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits for the thread's end. Returns how many huge pages it has made.
    pub fn join(mut self) -> u64 {
        self.thread
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or(0)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread did not harm the guest.
            let _ = thread.join();
        }
    }
}

/// Whether the host allows huge pages for memory files.
fn are_allowed() -> bool {
    let setting = std::fs::read_to_string(ALLOWED).unwrap_or_default();
    ["[always]", "[within_size]", "[advise]"]
        .iter()
        .any(|allowed| setting.contains(allowed))
}

fn put_together(ram: &GuestRam, stop: &AtomicBool) -> u64 {
    let goes_on = || !stop.load(Ordering::Acquire);
    let holes = MigrationBitmap::new(ram.bitmap_pages());
    let mut goes_on_searching = goes_on;
    let mut budget = HoleBudget::unlimited(&mut goes_on_searching);
    match ram.find_holes(&mut budget, &mut |hole| holes.insert(hole)) {
        Ok(true) => {}
        Ok(false) => return 0,
        Err(error) => {
            log::warn!("the guest stays on small pages: {error}");
            return 0;
        }
    }
    let mut made = 0;
    for block in ram.regions().iter().flat_map(blocks_of) {
        if !goes_on() {
            break;
        }
        let words = block.first() / 64..block.end() / 64;
        if words.into_iter().any(|word| holes.load(word as usize) != 0) {
            continue;
        }
        let began = Instant::now();
        match advice::collapse(ram, block) {
            Ok(()) => made += 1,
            // There is no free huge page, or the mapping is not aligned.
            Err(error) => log::debug!("block {:#x}: {error}", block.first() * PAGE_SIZE),
        }
        thread::sleep(began.elapsed() * PAUSE);
    }
    log::debug!("made {made} huge pages after the arrival");
    made
}

/// The blocks of 2 MiB that lie wholly in `region`.
fn blocks_of(region: &PageRange) -> impl Iterator<Item = PageRange> + use<> {
    let (first, end) = (region.first().next_multiple_of(BLOCK), region.end());
    (first..end)
        .step_by(BLOCK as usize)
        .filter(move |first| first + BLOCK <= end)
        .filter_map(|first| PageRange::new(first, BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MachineMemory, MemoryOptions};

    /// Allows huge pages for memory files that ask for them, until it is dropped.
    struct Allowed(String);

    impl Allowed {
        fn advise() -> std::io::Result<Self> {
            let before = std::fs::read_to_string(ALLOWED)?;
            let chosen = before
                .split(['[', ']'])
                .nth(1)
                .unwrap_or("never")
                .to_owned();
            std::fs::write(ALLOWED, "advise")?;
            Ok(Self(chosen))
        }
    }

    impl Drop for Allowed {
        fn drop(&mut self) {
            let _ = std::fs::write(ALLOWED, &self.0);
        }
    }

    /// Bytes of the mapping of `ram` that are on huge pages.
    fn huge_bytes(ram: &GuestRam) -> u64 {
        use vm_memory::GuestMemoryBackend;
        let start = ram
            .memory()
            .iter()
            .next()
            .map(|region| region.as_ptr() as u64);
        let wanted = format!("{:x}-", start.unwrap());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&wanted));
        let line = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.unwrap().parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn memory_that_arrived_whole_is_on_huge_pages_again_and_holes_stay_holes() {
        let _allowed = match Allowed::advise() {
            Ok(allowed) => allowed,
            Err(error) => {
                spec_testing::skipped(format_args!(
                    "this user cannot allow huge pages for memory files ({error})"
                ));
                return;
            }
        };
        let memory = MachineMemory::new(4 * BLOCK * PAGE_SIZE, MemoryOptions::default()).unwrap();
        let ram = memory.ram();
        let content: Vec<u8> = (0..BLOCK * PAGE_SIZE).map(|at| (at / 7) as u8).collect();
        // All of the first and the third block, a page of the second.
        for (first, count) in [(0, BLOCK), (BLOCK + 3, 1), (2 * BLOCK, BLOCK)] {
            let pages = PageRange::new(first, count).unwrap();
            ram.write(pages, &content[..pages.bytes() as usize])
                .unwrap();
        }
        assert_eq!(huge_bytes(ram), 0);
        let made = HugePages::restore(ram).join();
        if made == 0 {
            spec_testing::skipped("this kernel has no free huge page, or cannot collapse pages");
            return;
        }
        let mut got = vec![0; content.len()];
        for first in [0, 2 * BLOCK] {
            ram.read(PageRange::new(first, BLOCK).unwrap(), &mut got)
                .unwrap();
            assert!(got == content, "block at page {first}");
        }
        assert_eq!(huge_bytes(ram), made * BLOCK * PAGE_SIZE);
        let holes = ram.holes().unwrap();
        let expected = [(BLOCK, 3), (BLOCK + 4, BLOCK - 4), (3 * BLOCK, BLOCK)];
        assert_eq!(
            holes,
            expected.map(|(first, count)| PageRange::new(first, count).unwrap())
        );
    }

    #[test]
    fn a_block_lies_whole_in_its_region() {
        let firsts = |first, count| -> Vec<u64> {
            let region = PageRange::new(first, count).unwrap();
            blocks_of(&region).map(|block| block.first()).collect()
        };
        assert_eq!(firsts(0, 1024), [0, 512]);
        assert_eq!(firsts(1, 1023), [512]);
        assert!(firsts(1, 1000).is_empty());
        assert!(firsts(0, 511).is_empty());
    }
}
