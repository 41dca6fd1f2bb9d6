// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What compression costs for a section of 1 MiB, by what is in it, beside its checksum and a copy of it. Content that does not shrink
//! is judged by a sample and left alone: its row is the cost of the try.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use host_migrator::compression::{Packer, Unpacker};
use host_migrator::{Compression, PAGE_SIZE, ZstdLevel};
use spec::stamp::Random;
use spec::stream::MAX_SECTION_PAGES;

const PAGE_WORDS: usize = PAGE_SIZE as usize / 8;

fn compression(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compression");
    group.sample_size(20);
    for (name, content) in contents() {
        group.throughput(Throughput::Bytes(content.len() as u64));
        for method in methods() {
            section(&mut group, method, name, &content);
        }
    }
    let [(_, random), ..] = contents();
    group.bench_function("checksum of the same", |bencher| {
        bencher.iter(|| crc32fast::hash(&random));
    });
    let mut copy = random.clone();
    group.bench_function("copy of the same", |bencher| {
        bencher.iter(|| copy.copy_from_slice(&random));
    });
    group.finish();
}

fn section(
    group: &mut BenchmarkGroup<'_, WallTime>,
    compression: Compression,
    name: &str,
    content: &[u8],
) {
    let packer = Packer::new(compression).expect("memory");
    let mut packer = packer.expect("it compresses");
    let level = compression
        .level()
        .map_or(String::new(), |level| format!(" {}", level.get()));
    let method = format!("{}{level}", compression.name());
    // The first section is tried as a whole. What counts is the state that lasts.
    packer.pack(content);
    group.bench_function(format!("{method}, {name}"), |bencher| {
        bencher.iter(|| packer.pack(content).map(|packed| packed.bytes.len()));
    });
    let Some(packed) = packer.pack(content) else {
        println!("{method}, {name}: sent as it is");
        return;
    };
    let rate = content.len() as f64 / packed.bytes.len() as f64;
    println!("{method}, {name}: {rate:.2} times smaller");
    let mut unpacker = Unpacker::default();
    group.bench_function(format!("{method}, {name}, at the destination"), |bencher| {
        bencher.iter(|| {
            let content = unpacker.unpack(packed.method, packed.bytes, content.len());
            content.expect("it was compressed").len()
        });
    });
}

fn methods() -> [Compression; 3] {
    let zstd = |level| Compression::Zstd {
        level: ZstdLevel::new(level).expect("a level"),
    };
    [Compression::Lz4, zstd(1), zstd(3)]
}

/// The contents of `lacuna bench transport`, and some of a program's: this one's.
fn contents() -> [(&'static str, Vec<u8>); 4] {
    let program = std::env::current_exe().and_then(std::fs::read);
    let bytes = (MAX_SECTION_PAGES * PAGE_SIZE) as usize;
    let program = program.expect("this program").into_iter().cycle();
    [
        ("random", pages(|_| true)),
        ("compressible", pages(|_| false)),
        ("mixed", pages(|page| page % 2 == 0)),
        ("a program", program.skip(bytes).take(bytes).collect()),
    ]
}

/// Pages in which every word is random if `all_random` says so, and otherwise one in four.
fn pages(all_random: impl Fn(u64) -> bool) -> Vec<u8> {
    let mut random = Random::new(1);
    let mut bytes = Vec::new();
    for page in 0..MAX_SECTION_PAGES {
        let same = random.next();
        for word in 0..PAGE_WORDS {
            let is_random = all_random(page) || word % 4 == 0;
            let word = if is_random { random.next() } else { same };
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

criterion_group!(benches, compression);
criterion_main!(benches);
