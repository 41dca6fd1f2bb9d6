// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The zero page test, from memory, beside a loop that only reads it, and from the cache.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use host_migrator::memory::zero::is_zero;

const PAGE: usize = 4096;
/// More than any cache holds.
const PAGES: usize = 64 << 10;

fn zero(criterion: &mut Criterion) {
    // Written, so that it is memory and not one shared page of zeros.
    let mut memory = vec![1u8; PAGES * PAGE];
    memory.fill(0);
    let (pages, _) = memory.as_chunks::<PAGE>();
    let mut group = criterion.benchmark_group("zero");
    group.throughput(Throughput::Bytes(memory.len() as u64));
    group.sample_size(20);
    group.bench_function("256 MiB of zero pages", |bencher| {
        bencher.iter(|| pages.iter().filter(|page| is_zero(page)).count());
    });
    let (words, _) = memory.as_chunks::<64>();
    group.bench_function("256 MiB, read and nothing else", |bencher| {
        bencher.iter(|| {
            let merge =
                |bits: [u8; 64], line: &[u8; 64]| std::array::from_fn(|i| bits[i] | line[i]);
            words.iter().fold([0; 64], merge)
        });
    });
    group.throughput(Throughput::Bytes(PAGE as u64));
    group.bench_function("one zero page in the cache", |bencher| {
        bencher.iter(|| is_zero(black_box(&pages[0])));
    });
    let mut page = pages[0];
    page[PAGE - 2] = 1;
    group.bench_function("one page that is zero but for its end", |bencher| {
        bencher.iter(|| is_zero(black_box(&page)));
    });
    group.finish();
}

criterion_group!(benches, zero);
criterion_main!(benches);
