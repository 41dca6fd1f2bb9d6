// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Would it pay to send only what has changed in a page that is sent again? Measured on the memory of any process, such as a VMM:
//! `cargo run --release -p host-migrator --example delta -- PID [SECONDS [ROUNDS]]`.
//!
//! Each round compares the process's memory with that of the round before, as a migration would that has sent it. Pages that changed are
//! encoded in four ways: as runs of changed bytes (the idea of QEMU's XBZRLE), with LZ4, with Zstandard, and as a delta compressed
//! with Zstandard. The process is not stopped meanwhile, as a guest is not.

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::compression::Packer;
use host_migrator::memory::zero::is_zero;
use host_migrator::{Compression, PAGE_SIZE, ZstdLevel};
use spec::stream::MAX_SECTION_PAGES;

const PAGE: usize = PAGE_SIZE as usize;
const SECTION: usize = MAX_SECTION_PAGES as usize * PAGE;
/// Smaller mappings are the VMM's own, not a guest's.
const LEAST_MAPPING: usize = 16 << 20;
/// As many equal bytes at least end a run of changed ones: to say so takes two.
const SHORTEST_GAP: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<u64> = (std::env::args().skip(1))
        .map(|arg| arg.parse())
        .collect::<Result<_, _>>()?;
    let [pid, rest @ ..] = &args[..] else {
        return Err("usage: delta PID [SECONDS [ROUNDS]]".into());
    };
    let pause = Duration::from_secs(rest.first().copied().unwrap_or(1));
    let rounds = rest.get(1).copied().unwrap_or(5);
    let mut before = snapshot(*pid)?;
    println!("{} MiB of memory", before.len() >> 20);
    for round in 1..=rounds {
        thread::sleep(pause);
        let now = snapshot(*pid)?;
        report(round, &before, &now)?;
        before = now;
    }
    Ok(())
}

/// The process's large writable mappings, one after the other.
fn snapshot(pid: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut bytes = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').unwrap_or_default();
        let (start, end) = range.split_once('-').ok_or("a mapping without an end")?;
        let start = u64::from_str_radix(start, 16)?;
        let length = (u64::from_str_radix(end, 16)? - start) as usize;
        if rest.starts_with("rw") && length >= LEAST_MAPPING {
            let at = bytes.len();
            bytes.resize(at + length, 0);
            for chunk in (at..bytes.len()).step_by(SECTION) {
                let end = bytes.len().min(chunk + SECTION);
                // What cannot be read, such as memory behind the end of its file, is left zero.
                let _ = memory.read_exact_at(&mut bytes[chunk..end], start + (chunk - at) as u64);
            }
        }
    }
    Ok(bytes)
}

fn report(round: u64, before: &[u8], now: &[u8]) -> Result<(), Box<dyn Error>> {
    let (olds, _) = before.as_chunks::<PAGE>();
    let (news, _) = now.as_chunks::<PAGE>();
    let (mut plain, mut deltas) = (Vec::new(), Vec::new());
    let (mut runs, mut overflows) = (0, 0);
    let mut took = Duration::ZERO;
    for (old, new) in olds.iter().zip(news) {
        // A page that was zero was not sent, so that there is nothing to compare it with.
        if old == new || is_zero(new) || is_zero(old) {
            continue;
        }
        plain.extend(new);
        deltas.extend(old.iter().zip(new).map(|(old, new)| old ^ new));
        let began = Instant::now();
        let encoded = run_bytes(old, new);
        took += began.elapsed();
        // What is no smaller is sent as it is.
        overflows += u64::from(encoded >= PAGE);
        runs += encoded.min(PAGE);
    }
    let pages = plain.len() / PAGE;
    let share = |bytes: usize| bytes as f64 / plain.len().max(1) as f64;
    let zstd = Compression::Zstd {
        level: ZstdLevel::MIN,
    };
    println!(
        "round {round}: {pages} pages sent again; of their bytes remain: runs of changes {:.3} ({overflows} pages whole, \
         {:.1} us a page), lz4 {:.3}, zstd {:.3}, delta and zstd {:.3}",
        share(runs),
        took.as_secs_f64() * 1e6 / pages.max(1) as f64,
        share(packed(Compression::Lz4, &plain)?),
        share(packed(zstd, &plain)?),
        share(packed(zstd, &deltas)?),
    );
    Ok(())
}

/// Bytes of `new` as runs of bytes that differ from `old`, each with its distance from the run before and its length.
fn run_bytes(old: &[u8; PAGE], new: &[u8; PAGE]) -> usize {
    let number = |value: usize| if value < 128 { 1 } else { 2 };
    let (mut at, mut end, mut bytes) = (0, 0, 0);
    while let Some(first) = (at..PAGE).find(|&at| old[at] != new[at]) {
        let mut last = first;
        let mut next = first + 1;
        while next < PAGE && next - last <= SHORTEST_GAP {
            if old[next] != new[next] {
                last = next;
            }
            next += 1;
        }
        let length = last + 1 - first;
        bytes += number(first - end) + number(length) + length;
        (at, end) = (last + 1, last + 1);
    }
    bytes
}

/// Bytes of `pages` on their way, in sections that are compressed where that makes them smaller.
fn packed(compression: Compression, pages: &[u8]) -> Result<usize, Box<dyn Error>> {
    let mut packer = Packer::new(compression)?.ok_or("this compresses")?;
    let sections = pages.chunks(SECTION);
    let sizes = sections.map(|section| match packer.pack(section) {
        Some(packed) => packed.bytes.len(),
        None => section.len(),
    });
    Ok(sizes.sum())
}
