// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration bitmap: claiming, merging a harvest, counting; for a guest of 64 GiB and one of 12 TiB.

use bitvec::order::Lsb0;
use bitvec::vec::BitVec;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use host_migrator::MigrationBitmap;
use spec::PageRange;
use spec::stamp::Random;

const PAGES_OF_64_GIB: u64 = 16 << 20;
const PAGES_OF_12_TIB: u64 = 3 << 30;

fn all(pages: u64) -> MigrationBitmap {
    let bitmap = MigrationBitmap::new(pages);
    bitmap.insert(PageRange::new(0, pages).expect("pages"));
    bitmap
}

/// What the sender does in a round, but for the sending.
fn claim_walk(bitmap: &MigrationBitmap) -> u64 {
    bitmap
        .occupied()
        .map(|index| u64::from(bitmap.claim(index).count_ones()))
        .sum()
}

fn words(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bitmap of 64 GiB");
    group.throughput(Throughput::Bytes(PAGES_OF_64_GIB / 8));
    group.bench_function("claim, all dirty", |bencher| {
        let fill = || all(PAGES_OF_64_GIB);
        bencher.iter_batched_ref(fill, |bitmap| claim_walk(bitmap), BatchSize::LargeInput);
    });
    group.bench_function("merge a harvest, all dirty", |bencher| {
        // As KVM's log gives it.
        let bitmap = MigrationBitmap::new(PAGES_OF_64_GIB);
        let dirty: BitVec<u64, Lsb0> = BitVec::repeat(true, PAGES_OF_64_GIB as usize);
        bencher.iter(|| bitmap.insert_bits(0, &dirty));
    });
    let bitmap = all(PAGES_OF_64_GIB);
    group.bench_function("count", |bencher| bencher.iter(|| bitmap.count()));
    group.finish();
}

fn large_guest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bitmap of 12 TiB");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(PAGES_OF_12_TIB / 8));
    let bitmap = MigrationBitmap::new(PAGES_OF_12_TIB);
    group.bench_function("walk, clean", |bencher| {
        bencher.iter(|| claim_walk(&bitmap))
    });
    let one_percent = || {
        // As guests do it: in clusters, here of 256 pages.
        let mut random = Random::new(1);
        for _ in 0..PAGES_OF_12_TIB / 100 / 256 {
            let first = random.below(PAGES_OF_12_TIB - 256);
            bitmap.insert(PageRange::new(first, 256).expect("pages"));
        }
    };
    group.bench_function("walk, 1 % dirty", |bencher| {
        bencher.iter_batched(
            one_percent,
            |()| claim_walk(&bitmap),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, words, large_guest);
criterion_main!(benches);
