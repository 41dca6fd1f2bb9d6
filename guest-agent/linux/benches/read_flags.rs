// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the agent adds to reading the kernel's page flags: a bare `read` of a part against a map of it, made with one
//! look and with two.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lacuna_agent::free_pages::{FreePages, Looks, parts};
use lacuna_agent::memory;
use spec::PageRange;
use spec::agent::{MAX_FRAME_PAYLOAD, map};

fn read_flags(c: &mut Criterion) {
    let Ok(file) = File::open("/proc/kpageflags") else {
        println!("skipped: /proc/kpageflags cannot be read here");
        return;
    };
    let part = most_free();
    let mut group = c.benchmark_group("page flags");
    group.throughput(Throughput::Elements(part.count()));
    let mut bytes = vec![0; part.count() as usize * 8];
    group.bench_function("bare read", |b| {
        b.iter(|| file.read_exact_at(&mut bytes, part.first() * 8).unwrap());
    });
    for (name, looks) in [
        ("map, one look", Looks::Once),
        ("map, two looks", Looks::Twice),
    ] {
        let mut pages = FreePages::open(looks).unwrap();
        let mut payload = [0; MAX_FRAME_PAYLOAD];
        group.bench_function(name, |b| {
            b.iter(|| {
                let (words, _) = pages.read(part).unwrap();
                black_box(map::encode(part, words, &mut payload))
            });
        });
    }
    group.finish();
}

/// The part of memory with the most free pages: where a second look costs most.
fn most_free() -> PageRange {
    let mut pages = FreePages::open(Looks::Once).unwrap();
    let zones = memory::zones().unwrap();
    let all = zones.iter().flat_map(|zone| parts(*zone));
    all.max_by_key(|part| pages.read(*part).unwrap().1).unwrap()
}

criterion_group!(benches, read_flags);
criterion_main!(benches);
