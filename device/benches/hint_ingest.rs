// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast hints become bits of the map, in bytes of guest memory covered a second.
//!
//! A guest of 64 GiB hints all of it, in blocks of one size; then the migrator takes the bits out.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spec::PageRange;
use spec::hint_map::{HintMap, bytes_for};
use vhost_device_balloon::hint_queue::HintSink;
use vhost_device_balloon::hinting::Hinting;

const GUEST: u64 = 64 << 30;
const PAGES: u64 = GUEST / spec::PAGE_SIZE;

fn hint_ingest(criterion: &mut Criterion) {
    let bytes = bytes_for(PAGES).expect("64 GiB have a map");
    let words: Vec<AtomicU64> = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
    let map = HintMap::format(&words[..], PAGES).expect("the memory is large enough");
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
            let mut start = 0;
            bencher.iter(|| {
                let mut sink = HintSink::new(&mut hinting, Some(&map), &memory, 1024);
                for index in 0..blocks {
                    sink.hint(start + index * block, block);
                }
                start = (start + blocks * block) % GUEST;
            });
            for index in 0..map.bitmap_words() {
                black_box(map.take(index));
            }
        });
    }
    group.finish();
}

criterion_group!(benches, hint_ingest);
criterion_main!(benches);
