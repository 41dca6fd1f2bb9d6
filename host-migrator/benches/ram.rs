// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: the source's copy out of it, and the destination's two ways to put pages into memory that
//! was never touched.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use host_migrator::{GuestRam, RamRegion};
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{Bytes, GuestAddress};

/// More than any cache holds.
const PAGES: u64 = 64 << 10;
/// Pages of a section.
const RUN: u64 = 256;
const RUN_BYTES: usize = (RUN * PAGE_SIZE) as usize;

fn copy(criterion: &mut Criterion) {
    let ram = untouched();
    for run in runs() {
        ram.write(run, &[7; RUN_BYTES]).expect("memory");
    }
    let mut group = criterion.benchmark_group("guest memory, copied");
    group.throughput(Throughput::Bytes(PAGES * PAGE_SIZE));
    group.sample_size(20);
    let mut buffer = vec![0; RUN_BYTES];
    group.bench_function("to a buffer that stays in the cache", |bencher| {
        bencher.iter(|| runs().for_each(|run| ram.read(run, &mut buffer).expect("in memory")));
    });
    let bare = vec![7; (PAGES * PAGE_SIZE) as usize];
    group.bench_function("the same of memory of this process, by memcpy", |bencher| {
        bencher.iter(|| {
            for run in bare.chunks_exact(RUN_BYTES) {
                buffer.copy_from_slice(run);
                black_box(&mut buffer);
            }
        });
    });
    group.finish();
}

fn first_write(criterion: &mut Criterion) {
    let content = vec![7; RUN_BYTES];
    let mut group = criterion.benchmark_group("guest memory, first write");
    group.throughput(Throughput::Bytes(PAGES * PAGE_SIZE));
    group.sample_size(20);
    group.bench_function("through the memory file", |bencher| {
        let write = |ram: GuestRam| {
            runs().for_each(|run| ram.write(run, &content).expect("in memory"));
            ram
        };
        bencher.iter_batched(untouched, write, BatchSize::PerIteration);
    });
    group.bench_function("through the mapping", |bencher| {
        let write = |ram: GuestRam| {
            runs().for_each(|run| {
                let at = GuestAddress(run.first() * PAGE_SIZE);
                ram.memory().write_slice(&content, at).expect("in memory");
            });
            ram
        };
        bencher.iter_batched(untouched, write, BatchSize::PerIteration);
    });
    group.finish();
}

fn untouched() -> GuestRam {
    let region = RamRegion::new(0, PAGES * PAGE_SIZE).expect("a memory file");
    GuestRam::map(vec![region]).expect("mapping")
}

fn runs() -> impl Iterator<Item = PageRange> {
    let runs = (0..PAGES).step_by(RUN as usize);
    runs.filter_map(|first| PageRange::new(first, RUN))
}

criterion_group!(benches, copy, first_write);
criterion_main!(benches);
