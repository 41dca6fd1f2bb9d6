// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The zero page test, from memory and from the cache; and the copy that comes before it.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use host_migrator::zero::is_zero;
use host_migrator::{GuestRam, RamRegion};
use spec::PageRange;

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

fn copy(criterion: &mut Criterion) {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::memfd_create("bench", flags).expect("memfd"));
    let len = (PAGES * PAGE) as u64;
    file.set_len(len).expect("memory");
    let region = RamRegion {
        gpa: 0,
        len,
        file,
        offset: 0,
    };
    let ram = GuestRam::map(vec![region]).expect("mapping");
    let runs: Vec<PageRange> = (0..PAGES as u64)
        .step_by(64)
        .filter_map(|first| PageRange::new(first, 64))
        .collect();
    for run in &runs {
        ram.fill(*run, &mut &vec![7u8; 64 * PAGE][..])
            .expect("fill");
    }
    let mut group = criterion.benchmark_group("guest memory");
    group.throughput(Throughput::Bytes(len));
    group.sample_size(20);
    let mut buffer = vec![0; 64 * PAGE];
    group.bench_function("copy to a buffer that stays in the cache", |bencher| {
        bencher.iter(|| {
            runs.iter()
                .for_each(|run| ram.read(*run, &mut buffer).expect("in memory"))
        });
    });
    group.bench_function("checksum", |bencher| {
        bencher.iter(|| {
            let mut hasher = crc32fast::Hasher::new();
            runs.iter()
                .for_each(|run| ram.checksum(*run, &mut hasher).expect("in memory"));
            hasher.finalize()
        });
    });
    group.finish();
}

criterion_group!(benches, zero, copy);
criterion_main!(benches);
