// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast hints become bits of the map, in bytes of guest memory covered a second.
//!
//! A guest of 64 GiB hints the first 1024 blocks of one size, which nobody has hinted since the migrator took the bits out.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spec::PageRange;
use spec::hint_map::HintMap;
use vhost_device_balloon::hints::sink::HintSink;
use vhost_device_balloon::hints::state_machine::Hinting;
use vhost_device_balloon::memory::shared_map::{self, SharedMap};

const GUEST: u64 = 64 << 30;
const PAGES: u64 = GUEST / spec::PAGE_SIZE;

fn hint_ingest(criterion: &mut Criterion) {
    let map = shared_hint_map();
    let memory = [PageRange::new(0, PAGES).expect("the guest has pages")];
    let mut hinting = Hinting::default();
    let id = hinting.open(1).expect("no epoch is open");
    hinting.guest_command(4, id.get().to_le_bytes());

    let mut group = criterion.benchmark_group("hint_ingest");
    for (name, block) in [("4 MiB", 4 << 20), ("2 MiB", 2 << 20), ("4 KiB", 4 << 10)] {
        // What each block size covers in one go: as many blocks as the longest queue holds.
        let blocks = 1024;
        group.throughput(Throughput::Bytes(blocks * block));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let words = (blocks * block / spec::PAGE_SIZE).div_ceil(64);
            let empty = || {
                for index in 0..words {
                    black_box(map.take(index as usize));
                }
            };
            let hint = |()| {
                let mut sink = HintSink::new(&mut hinting, Some(&map), &memory, 1024);
                for index in 0..blocks {
                    sink.hint(index * block, block);
                }
            };
            bencher.iter_batched(empty, hint, BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// A map as a migrator hands it over.
fn shared_hint_map() -> HintMap<SharedMap> {
    let (file, bytes) = spec_testing::memory_file::hint_map(PAGES);
    shared_map::open(file, bytes).expect("a hint map")
}

criterion_group!(benches, hint_ingest);
criterion_main!(benches);
