// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of a round besides its pages: logs, maps and bitmaps of guests from 1 GiB to 12 TiB. No page is dirty, or
//! one in 10 000, at random places or in runs of 64. In some rows the guest hints as many pages in each round.
//!
//! The floor is a bare loop that knows these words beforehand, and reads and writes each of them in every map in which a round
//! must: the same cache misses, and nothing else.
//!
//! Guest memory is never touched, so it takes no host memory. KVM's log is included if the kernel accepts memory slots
//! of that size. The time without it is printed, too.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use host_migrator::rule::{Flush, HintBits, Pass, Tellers, Tracker};
use host_migrator::{DirtyLog, DirtyLogError, HintError, HintSource, Trace};
use kvm_ioctls::Kvm;
use reference_vmm::MemoryOptions;
use reference_vmm::dirty_log::KvmDirtyLog;
use reference_vmm::memory::MachineMemory;
use reference_vmm::own_writes::OwnWritesLog;
use reference_vmm::slots::MemorySlots;
use spec::control::EpochReport;
use spec::hint_map::{HintMap, HintPhase, Words, bytes_for};
use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const GIB: u64 = 1 << 30;
const SIZES: [u64; 4] = [GIB, 16 * GIB, 256 * GIB, 12 << 40];
/// One in this many pages is dirty, and one is hinted.
const SPARSE: u64 = 10_000;
const ROUNDS: usize = 9;
/// KVM needs at least eight bytes for each page of a slot: 24 GiB for 12 TiB.
const MOST_WITH_KVM: u64 = 256 * GIB;

/// Where the dirty pages lie, and whether as many are hinted.
#[derive(Clone, Copy)]
enum Dirty {
    Nowhere,
    Anywhere,
    AnywhereAndHinted,
    InRunsAndHinted,
}

impl Dirty {
    const ALL: [Self; 4] = [
        Self::Nowhere,
        Self::Anywhere,
        Self::AnywhereAndHinted,
        Self::InRunsAndHinted,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "",
            Self::Anywhere => "anywhere",
            Self::AnywhereAndHinted => "anywhere, as many hinted",
            Self::InRunsAndHinted => "in runs, as many hinted",
        }
    }

    /// Pages that follow each other.
    fn run(self) -> u64 {
        match self {
            Self::InRunsAndHinted => 64,
            _ => 1,
        }
    }

    fn is_hinted(self) -> bool {
        matches!(self, Self::AnywhereAndHinted | Self::InRunsAndHinted)
    }
}

fn main() {
    println!(
        "memory     KVM's log  dirty pages                       round ms  stop ms  ms a TiB (round and stop)  times the floor"
    );
    for bytes in SIZES {
        for dirty in Dirty::ALL {
            for with_kvm in [false, true] {
                if !with_kvm || bytes <= MOST_WITH_KVM {
                    measure(bytes, with_kvm, dirty);
                }
            }
        }
    }
}

fn measure(bytes: u64, with_kvm: bool, dirty: Dirty) {
    let memory = MachineMemory::new(bytes, MemoryOptions::default()).expect("guest memory");
    let mut logs: Vec<Box<dyn DirtyLog>> =
        vec![Box::new(OwnWritesLog::new(Arc::clone(memory.own())))];
    let size = format!("{:>6} GiB", bytes / GIB);
    if with_kvm {
        match kvm_log(&memory) {
            Ok(log) => logs.push(Box::new(log)),
            Err(why) => return println!("{size} with       skipped: {why}"),
        }
    }
    let ram = memory.ram();
    let mut hints = Hints::new(ram.bitmap_pages());
    let map = Arc::clone(&hints.0);
    let trace = Trace::default();
    let hints: &mut dyn HintSource = &mut hints;
    let mut tracker =
        Tracker::arm(ram.regions(), &mut logs, Some(hints), Tellers::ALL, &trace).expect("armed");
    // The first round sends all of memory; the others are measured.
    claim_all(&tracker.open().pass());
    let mut random = Random::new(bytes);
    let pages = match dirty {
        Dirty::Nowhere => 0,
        _ => ram.pages() / SPARSE,
    };
    let (mut rounds, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        make_dirty(&memory, &map, &mut random, pages, dirty);
        let began = Instant::now();
        let epoch = tracker.open();
        claim_all(&epoch.pass());
        epoch.end(&mut NothingGathered).expect("harvested");
        rounds.push(began.elapsed());

        make_dirty(&memory, &map, &mut random, pages, dirty);
        let began = Instant::now();
        tracker.last_harvest().expect("harvested");
        claim_all(&tracker.rest());
        stops.push(began.elapsed());
    }
    drop(tracker);
    let (round, stop) = (ms(median(rounds)), ms(median(stops)));
    let floor = ms(floor(ram.pages(), pages, dirty));
    let tebibytes = bytes as f64 / (1_u64 << 40) as f64;
    println!(
        "{size} {:<9}  {pages:>7} {:<24}  {round:>8.3}  {stop:>7.3}  {:>26.3}  {:>15}",
        if with_kvm { "with" } else { "without" },
        dirty.name(),
        (round + stop) / tebibytes,
        match pages {
            0 => String::new(),
            _ => format!("{:.1}", (round + stop) / floor),
        },
    );
}

/// The time for the cache misses of a round and of the last harvest, with `count` dirty pages in each.
fn floor(pages: u64, count: u64, dirty: Dirty) -> Duration {
    let words = pages.div_ceil(64) as usize;
    let run = dirty.run();
    let map = || vec![1_u64; words];
    let (mut log, mut bitmap, mut hints, mut free_before) = (map(), map(), map(), map());
    let mut delivered = vec![1_u64; 2 * words];
    let mut random = Random::new(pages);
    let mut some = || -> Vec<usize> {
        let some = (0..count / run).map(|_| random.below(pages / run) * run / 64);
        let mut some: Vec<usize> = some.map(|word| word as usize).collect();
        some.sort_unstable();
        some
    };
    let mut harvest_and_claim = |written: &[usize]| {
        for index in written {
            bitmap[*index] |= std::mem::take(&mut log[*index]);
        }
        for index in written {
            let claimed = std::mem::take(&mut bitmap[*index]);
            delivered[2 * index] |= claimed;
            delivered[2 * index + 1] &= !claimed;
        }
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        // The last harvest takes no hints. Those that came before it are taken in the next round.
        let (written, written_last) = (some(), some());
        let hinted = match dirty.is_hinted() {
            true => [some(), some()].concat(),
            false => Vec::new(),
        };
        let began = Instant::now();
        harvest_and_claim(&written);
        for index in &hinted {
            free_before[*index] = std::mem::take(&mut hints[*index]);
        }
        harvest_and_claim(&written_last);
        times.push(began.elapsed());
    }
    std::hint::black_box((delivered, free_before));
    median(times)
}

fn kvm_log(memory: &MachineMemory) -> Result<KvmDirtyLog, String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
    let vm = kvm.create_vm().map_err(|error| error.to_string())?;
    let slots = MemorySlots::register(Arc::new(vm), Arc::clone(memory.ram()));
    let slots = slots.map_err(|error| format!("KVM gives no memory slots: {error}"))?;
    Ok(KvmDirtyLog::new(Arc::new(slots)))
}

/// Marks `pages` pages as written in the VMM's own log, and hints as many if `dirty` says so.
fn make_dirty(
    memory: &MachineMemory,
    map: &HintMap<OwnWords>,
    random: &mut Random,
    pages: u64,
    dirty: Dirty,
) {
    let run = dirty.run();
    for region in memory.own().iter() {
        let count = pages * region.len() / (memory.ram().pages() * PAGE_SIZE);
        for _ in 0..count / run {
            let first = random.below(region.len() / PAGE_SIZE / run) * run;
            let bytes = (run * PAGE_SIZE) as usize;
            (**region)
                .bitmap()
                .mark_dirty((first * PAGE_SIZE) as usize, bytes);
            if dirty.is_hinted() {
                map.insert(PageRange::new(first, run).expect("a run"));
            }
        }
    }
}

fn claim_all(pass: &Pass<'_>) {
    for index in pass.words() {
        let claimed = pass.claim(index, u64::MAX);
        pass.copied(index, &claimed, 0);
    }
}

struct NothingGathered;

impl Flush for NothingGathered {
    type Error = DirtyLogError;

    fn flush(&mut self, _pass: &Pass<'_>) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

struct OwnWords(Box<[AtomicU64]>);

impl Words for OwnWords {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.0.get(index)
    }
}

/// A device that can always be asked, and whose guest hints what [`make_dirty`] says.
struct Hints(Arc<HintMap<OwnWords>>);

impl Hints {
    fn new(pages: u64) -> Self {
        let words = bytes_for(pages).expect("a map of that size") / 8;
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(
            HintMap::format(OwnWords(words), pages).expect("a map"),
        ))
    }
}

impl HintSource for Hints {
    fn prepare(&mut self, _pages: u64, _tellers: Tellers) -> Result<(), HintError> {
        Ok(())
    }

    fn open(&mut self, epoch: u64) -> Result<(), HintError> {
        self.0.begin(epoch, HintPhase::Running);
        Ok(())
    }

    fn load(&self, index: usize) -> HintBits {
        self.0.load(index)
    }

    fn phase(&self) -> HintPhase {
        self.0.phase()
    }

    fn hinted_pages(&self) -> u64 {
        self.0.hinted_pages()
    }

    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError> {
        self.0.end(HintPhase::Closed);
        Ok(EpochReport {
            epoch,
            ..EpochReport::default()
        })
    }

    fn take_all(&mut self, told: &mut dyn FnMut(usize, HintBits)) {
        self.0.take_all(told);
    }

    fn done(&mut self) -> Result<(), HintError> {
        Ok(())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
