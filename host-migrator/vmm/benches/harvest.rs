// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of KVM's dirty log: arming 1 GiB, and harvesting it clean and dirty.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use host_migrator::{DirtyLog, MigrationBitmap};
use kvm_ioctls::Kvm;
use reference_vmm::MemoryOptions;
use reference_vmm::dirty_log::KvmDirtyLog;
use reference_vmm::memory::MachineMemory;
use reference_vmm::slots::MemorySlots;

const BYTES: u64 = 1 << 30;

fn harvest(criterion: &mut Criterion) {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return eprintln!("skipped: /dev/kvm cannot be opened: {error}"),
    };
    let vm = Arc::new(kvm.create_vm().expect("a virtual machine"));
    let memory = MachineMemory::new(BYTES, MemoryOptions::default()).expect("guest memory");
    let slots = MemorySlots::register(vm, Arc::clone(memory.ram())).expect("memory slots");
    let slots = Arc::new(slots);
    let mut log = KvmDirtyLog::new(Arc::clone(&slots));
    let bitmap = MigrationBitmap::new(memory.ram().bitmap_pages());

    criterion.bench_function("arm 1 GiB", |bencher| {
        bencher.iter_custom(|rounds| {
            timed(
                rounds,
                || log.stop().expect("stopped"),
                |()| log_start(&slots),
            )
        });
    });
    log.start().expect("started");
    criterion.bench_function("harvest 1 GiB clean", |bencher| {
        bencher.iter(|| log.harvest(&bitmap).expect("harvested"));
    });
    criterion.bench_function("harvest 1 GiB all dirty", |bencher| {
        bencher.iter_custom(|rounds| {
            // A log that is switched off and on again, with nothing cleared, says that all pages are dirty.
            let all_dirty = || {
                slots.set_logging(false).expect("off");
                slots.set_logging(true).expect("on");
                KvmDirtyLog::new(Arc::clone(&slots))
            };
            timed(rounds, all_dirty, |mut log| {
                let taken = log.harvest(&bitmap).expect("harvested");
                assert_eq!(taken, BYTES / spec::PAGE_SIZE);
            })
        });
    });
}

fn log_start(slots: &Arc<MemorySlots>) {
    KvmDirtyLog::new(Arc::clone(slots))
        .start()
        .expect("started");
}

/// The time of `rounds` times `work`, without the time of `prepare` before each.
fn timed<T>(rounds: u64, mut prepare: impl FnMut() -> T, mut work: impl FnMut(T)) -> Duration {
    let mut total = Duration::ZERO;
    for _ in 0..rounds {
        let input = prepare();
        let start = Instant::now();
        work(input);
        total += start.elapsed();
    }
    total
}

criterion_group!(benches, harvest);
criterion_main!(benches);
