// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What it costs to inflate a balloon by 1 GiB of memory that the guest has used, in pages a second.
//!
//! The driver queues 256 page numbers at a time, as Linux does, and the device does all that it does for them:
//! the ring, the batch, the set of pages, the holes. Beside it, what a call for each page costs.

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use spec::PAGE_SIZE;
use spec::balloon::feature;
use vhost_device_balloon::balloon::Balloon;
use vhost_device_balloon::balloon::options::Options;
use vhost_device_balloon::guest::config_channel::ConfigChannel;
use vhost_device_balloon::memory::dirty_log::LogBitmap;
use vhost_device_balloon::memory::guest_memory::Memory;
use vhost_device_balloon::virtqueue::ring::Ring;
use vhost_user_backend::VringT;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};

/// Pages that go into the balloon, and pages of a batch.
const PAGES: u32 = (1 << 30) / PAGE_SIZE as u32;
const BATCH: u32 = 256;
/// The guest: room for every other page, and for the queue before that.
const FIRST: u32 = 256;
const GUEST_PAGES: u32 = FIRST + 2 * PAGES;
/// The queue's parts, and where page numbers lie.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const NUMBERS: u64 = 0x3000;
const QUEUE_SIZE: u16 = 128;

/// A guest with an inflate queue, and its balloon.
struct Rig {
    memory: Memory,
    ring: Ring,
    balloon: Balloon,
    available: u16,
}

impl Rig {
    fn new() -> Self {
        let bytes = u64::from(GUEST_PAGES) * PAGE_SIZE;
        let file = memfd_create("inflate", MemfdFlags::CLOEXEC).expect("a memory file");
        ftruncate(&file, bytes).expect("room for the guest");
        let file = FileOffset::new(file.into(), 0);
        let region = (GuestAddress(0), bytes as usize, Some(file));
        let memory = GuestMemoryMmap::<LogBitmap>::from_ranges_with_files([region])
            .expect("the guest's memory");
        let memory = Memory::new(memory);
        let ring = Ring::new(memory.clone(), QUEUE_SIZE).expect("a ring");
        ring.set_queue_size(QUEUE_SIZE);
        ring.set_queue_info(DESCRIPTORS, AVAILABLE, USED)
            .expect("addresses in guest memory");
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        let mut balloon = Balloon::new(Options::default(), Arc::new(ConfigChannel::default()));
        balloon.acknowledge(1 << feature::VERSION_1);
        balloon.set_memory(memory.clone());
        Self {
            memory,
            ring,
            balloon,
            available: 0,
        }
    }

    /// Inflates by one batch, as the driver does it.
    fn inflate(&mut self, batch: &[u32]) {
        let memory = self.memory.memory();
        let numbers: Vec<u8> = batch.iter().flat_map(|page| page.to_le_bytes()).collect();
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&NUMBERS.to_le_bytes());
        descriptor[8..12].copy_from_slice(&(numbers.len() as u32).to_le_bytes());
        self.available = self.available.wrapping_add(1);
        let put = |at: u64, bytes: &[u8]| {
            memory
                .write_slice(bytes, GuestAddress(at))
                .expect("guest memory");
        };
        put(NUMBERS, &numbers);
        put(DESCRIPTORS, &descriptor);
        put(AVAILABLE + 2, &self.available.to_le_bytes());
        self.balloon
            .queue_event(0, std::slice::from_ref(&self.ring));
    }

    /// A call for each page, in the order in which the pages come.
    fn discard_one_by_one(&self, batch: &[u32]) {
        let memory = self.memory.memory();
        let region = memory.iter().next().expect("a region");
        let file = region.file_offset().expect("a file").file();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for page in batch {
            fallocate(file, flags, u64::from(*page) * PAGE_SIZE, PAGE_SIZE).expect("a hole");
        }
    }
}

/// Has the guest use each of its pages.
fn populate(memory: &Memory) {
    let memory = memory.memory();
    for page in FIRST..GUEST_PAGES {
        let address = GuestAddress(u64::from(page) * PAGE_SIZE);
        memory.write_slice(&[1], address).expect("guest memory");
    }
}

fn inflate(criterion: &mut Criterion) {
    let mut rig = Rig::new();
    let memory = rig.memory.clone();
    // A fixed permutation of each batch: Linux's free lists are in no order.
    let shuffled = |index: u32| index / BATCH * BATCH + index % BATCH * 149 % BATCH;
    let pages = |number: &dyn Fn(u32) -> u32| (0..PAGES).map(number).collect::<Vec<u32>>();
    let orders = [
        (
            "neighbours, shuffled",
            pages(&|index| FIRST + shuffled(index)),
        ),
        (
            "every other page",
            pages(&|index| FIRST + 2 * shuffled(index)),
        ),
    ];
    let mut group = criterion.benchmark_group("inflate_1_GiB");
    group
        .throughput(Throughput::Elements(PAGES.into()))
        .sample_size(10);
    for (name, pages) in &orders {
        group.bench_function(*name, |bencher| {
            bencher.iter_batched(
                || populate(&memory),
                |()| {
                    pages
                        .chunks(BATCH as usize)
                        .for_each(|batch| rig.inflate(batch))
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("{name}, a call a page"), |bencher| {
            bencher.iter_batched(
                || populate(&memory),
                |()| {
                    pages
                        .chunks(BATCH as usize)
                        .for_each(|batch| rig.discard_one_by_one(batch));
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    assert_eq!(rig.balloon.counters().failed_discards, 0);
}

criterion_group!(benches, inflate);
criterion_main!(benches);
