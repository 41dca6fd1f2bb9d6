// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest runs before its memory was read: with the kernel's userfaultfd, and threads as its vCPUs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use host_migrator::destination::{LazyRestore, RestoreError, restore_lazily};
use host_migrator::paging::{
    Mapping, MissingPages, Paging, PagingError, PagingEvent, PagingOptions, Prefault,
    TouchRecorder, Userfaultfd, read_touched, touched_path,
};
use host_migrator::snapshot::{SnapshotWriter, open_storage};
use host_migrator::{
    DestinationMachine, DirectIo, GuestRam, MachineError, MachineState, MigrationBitmap, Owner,
    OwnershipRecord, RamRegion, Snapshot, SnapshotTarget, Totals,
};
use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};
use spec_testing::{eventually, skipped};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::advice;
use super::rig::{content, machine_state, range, target, threads};
use super::software_guest::machine::{DESCRIPTION, SoftDestination};

/// Pages of the two regions: more than a huge page each, and not whole ones.
const LOW: u64 = 2000;
const HIGH: u64 = 1500;
const HIGH_FIRST: u64 = 1 << 12;

/// What each page contains that is not zero: the byte of its [`content`].
type Pages = BTreeMap<u64, u8>;

/// A snapshot, the memory of a machine for it, and what is known of the restore.
struct Rig {
    _folder: TempDir,
    target: SnapshotTarget,
    pages: Pages,
    files: Vec<RamRegion>,
    ram: Arc<GuestRam>,
    machine: LazyMachine,
    ownership: OwnershipRecord,
    options: PagingOptions,
}

/// A machine whose memory may be missing.
struct LazyMachine {
    soft: SoftDestination,
    mappings: Vec<Mapping>,
}

impl DestinationMachine for LazyMachine {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        self.soft.judge(description)
    }

    fn check(&mut self) -> Result<(), MachineError> {
        self.soft.check()
    }

    fn memory_will_be_missing(&mut self) -> Result<Vec<Mapping>, MachineError> {
        assert!(!self.soft.loaded);
        Ok(self.mappings.clone())
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        state.take("serial")?;
        state.take("nothing")?;
        self.soft.load(state)
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.soft.run()
    }
}

fn one(page: u64) -> PageRange {
    range(page, 1)
}

fn all_pages() -> impl Iterator<Item = u64> {
    (0..LOW).chain(HIGH_FIRST..HIGH_FIRST + HIGH)
}

/// About `in_use` of 100 pages, in runs, with gaps of more than a huge page.
fn some_pages(random: &mut Random, in_use: u64) -> Pages {
    let mut pages = Pages::new();
    let mut is_used = false;
    for page in all_pages() {
        if random.below(20) == 0 {
            is_used = random.below(100) < in_use;
        }
        if is_used && !(400..1300).contains(&page) {
            pages.insert(page, 1 + (random.next() % 250) as u8);
        }
    }
    pages
}

impl Rig {
    /// A snapshot of `pages`.
    fn new(pages: Pages) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let target = target(&folder.path().join("guest"));
        let regions = [(0, LOW), (HIGH_FIRST * PAGE_SIZE, HIGH)];
        let files: Vec<_> = regions
            .map(|(gpa, pages)| RamRegion::new(gpa, pages * PAGE_SIZE).unwrap())
            .into();
        let map = || {
            let files = files.iter().map(|file| file.try_clone().unwrap());
            GuestRam::map(files.collect()).unwrap()
        };
        let ram = Arc::new(map());
        let storage = open_storage(&target, DirectIo::Auto).unwrap();
        let mut writer = SnapshotWriter::begin(storage, ram.layout(), DESCRIPTION).unwrap();
        for (page, byte) in &pages {
            writer.pages(one(*page), &content(*byte)).unwrap();
        }
        writer.finish(&machine_state(), Totals::default()).unwrap();
        let mappings = Mapping::all_of(ram.memory());
        let soft = SoftDestination::default();
        Self {
            _folder: folder,
            target,
            pages,
            files,
            ram,
            machine: LazyMachine { soft, mappings },
            ownership: OwnershipRecord::there(),
            options: PagingOptions::default(),
        }
    }

    /// Maps the memory once more: with faults that are handled, or, as another process would, without.
    fn map_again(&mut self, is_handled: bool) -> Arc<GuestRam> {
        let files = self.files.iter().map(|file| file.try_clone().unwrap());
        let again = Arc::new(GuestRam::map(files.collect()).unwrap());
        if is_handled {
            self.machine
                .mappings
                .extend(Mapping::all_of(again.memory()));
        }
        again
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot::open(&self.target).unwrap())
    }

    /// Restores the guest. `None` if this user may not.
    fn restore(&mut self, prefault: Prefault) -> Option<(Paging, Receiver<PagingEvent>)> {
        let (told, events) = channel();
        let how = LazyRestore {
            paging: std::mem::take(&mut self.options),
            prefault,
        };
        let restored = restore_lazily(
            &self.snapshot(),
            &*self.ram,
            &mut self.machine,
            &self.ownership,
            how,
            Box::new(move |event| told.send(event).unwrap()),
        );
        match restored {
            Ok((paging, report)) => {
                assert!(self.machine.soft.runs);
                assert_eq!(self.ownership.get().owner, Owner::Here);
                assert_eq!(report.pages, self.pages.len() as u64);
                Some((paging, events))
            }
            Err(RestoreError::Userfaultfd(error)) => {
                let text = error.to_string();
                for name in [
                    "/dev/userfaultfd",
                    "system call",
                    "vm.unprivileged_userfaultfd",
                ] {
                    assert!(text.contains(name), "{text}");
                }
                skipped(text);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Flips a byte of `page` in the file.
    fn damage(&self, page: u64) {
        let slot = if page < LOW {
            page
        } else {
            LOW + page - HIGH_FIRST
        };
        let at = self.snapshot().places().page(slot) + 1000;
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.target.path)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }

    fn byte(&self, page: u64) -> u8 {
        self.pages.get(&page).copied().unwrap_or(0)
    }
}

/// What a vCPU reads in `page`.
fn touch(ram: &GuestRam, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE as usize];
    ram.read(one(page), &mut bytes).unwrap();
    bytes
}

fn assert_page(ram: &GuestRam, page: u64, byte: u8) {
    let right = match byte {
        0 => vec![0; PAGE_SIZE as usize],
        byte => content(byte),
    };
    assert!(touch(ram, page) == right, "page {page:#x}, byte {byte}");
}

fn complete(paging: &Paging, events: &Receiver<PagingEvent>) {
    eventually("the memory to be there", || {
        paging.is_complete().then_some(())
    });
    assert!(matches!(events.recv(), Ok(PagingEvent::Complete)));
    let status = paging.status();
    assert_eq!((status.missing, status.failure), (0, None));
}

#[test]
fn vcpus_that_touch_all_pages_at_once_find_each_as_it_was() {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let mut rig = Rig::new(some_pages(&mut random, 60));
        // The VMM has the memory mapped a second time, and touches it, too.
        let again = rig.map_again(true);
        let Some((paging, events)) = rig.restore(Prefault::Off) else {
            return;
        };
        thread::scope(|scope| {
            for vcpu in 0..4u64 {
                let (rig, again) = (&rig, &again);
                scope.spawn(move || {
                    let mut pages: Vec<u64> = all_pages().collect();
                    if vcpu % 2 == 1 {
                        pages.reverse();
                    }
                    for page in pages {
                        let ram = if vcpu < 2 { &rig.ram } else { again };
                        assert_page(ram, page, rig.byte(page));
                    }
                });
            }
        });
        complete(&paging, &events);
        let status = paging.status();
        assert_eq!(status.loaded, 0, "nobody asked the loader");
        assert!(status.faults > 0, "{status:?}");
        assert!(status.fault_p50_us <= status.fault_p99_us, "{status:?}");
        // The kernel has the memory again.
        rig.ram.discard(range(0, LOW)).unwrap();
        assert_page(&rig.ram, *rig.pages.keys().next().unwrap(), 0);
    }
}

#[test]
fn the_loader_brings_everything_while_nobody_asks() {
    let mut rig = Rig::new(some_pages(&mut Random::new(3), 70));
    let Some((paging, events)) = rig.restore(Prefault::Max) else {
        return;
    };
    complete(&paging, &events);
    let status = paging.status();
    assert_eq!((status.faults, status.loaded), (0, status.pages));
    for page in all_pages() {
        assert_page(&rig.ram, page, rig.byte(page));
    }
}

#[test]
fn nothing_is_loaded_before_it_is_wanted_and_the_pace_can_be_changed() {
    let mut rig = Rig::new(some_pages(&mut Random::new(4), 70));
    let Some((paging, events)) = rig.restore(Prefault::Off) else {
        return;
    };
    let (page, byte) = rig.pages.iter().next().unwrap();
    assert_page(&rig.ram, *page, *byte);
    let pages = rig.pages.len() as u64;
    let is_counted = || (paging.status().missing == pages - 1).then_some(());
    eventually("the page to be counted", is_counted);
    // No memory is taken for what is missing.
    let first = rig.files[0].file.metadata().unwrap();
    assert_eq!(first.blocks() * 512, PAGE_SIZE);
    paging.set_prefault(Prefault::BytesPerSecond(40_000_000));
    complete(&paging, &events);
    assert_eq!(paging.status().loaded, pages - 1);
}

#[test]
fn pages_that_were_touched_first_are_loaded_first_the_next_time() {
    let mut rig = Rig::new(some_pages(&mut Random::new(9), 70));
    let id = rig.snapshot().header().id;
    let list = touched_path(&rig.target.path);
    rig.options.touches = Some(TouchRecorder::create(&list, id).unwrap());
    let touched: Vec<u64> = rig.pages.keys().rev().step_by(100).copied().collect();
    let Some((paging, _events)) = rig.restore(Prefault::Off) else {
        return;
    };
    touched
        .iter()
        .for_each(|page| assert_page(&rig.ram, *page, rig.byte(*page)));
    drop(paging);
    assert_eq!(read_touched(&list, id, 10_000).unwrap(), touched);

    let mut again = Rig::new(rig.pages.clone());
    // Whatever the list says, nothing else happens.
    let nonsense = [u64::MAX, LOW + 1, 1 << 40];
    again.options.first = nonsense.into_iter().chain(touched.clone()).collect();
    let Some((paging, events)) = again.restore(Prefault::Off) else {
        return;
    };
    // So slow that the list alone is loaded for a while.
    paging.set_prefault(Prefault::BytesPerSecond(1_000_000));
    let is_here = |page: &u64| {
        let mut bytes = vec![0; PAGE_SIZE as usize];
        again.ram.peek(one(*page), &mut bytes).unwrap();
        bytes.iter().any(|byte| *byte != 0)
    };
    eventually("the list to be loaded", || {
        touched.iter().all(is_here).then_some(())
    });
    assert_eq!(paging.status().faults, 0);
    paging.set_prefault(Prefault::Max);
    complete(&paging, &events);
    for page in all_pages() {
        assert_page(&again.ram, page, again.byte(page));
    }
}

#[test]
fn a_guest_without_content_needs_nobody() {
    let mut rig = Rig::new(Pages::new());
    let Some((paging, events)) = rig.restore(Prefault::Off) else {
        return;
    };
    complete(&paging, &events);
    all_pages().for_each(|page| assert_page(&rig.ram, page, 0));
    assert_eq!(paging.status().faults, 0);
}

#[test]
fn what_is_written_or_given_up_during_the_restore_stays_so() {
    for seed in 0..9 {
        let mut random = Random::new(100 + seed);
        let mut rig = Rig::new(some_pages(&mut random, 50));
        let prefault = [
            Prefault::Off,
            Prefault::BytesPerSecond(2_000_000),
            Prefault::Max,
        ];
        let Some((paging, events)) = rig.restore(prefault[(seed % 3) as usize]) else {
            return;
        };
        // Each vCPU has pages of its own, and knows what must be in them.
        let pages: Vec<u64> = all_pages().collect();
        thread::scope(|scope| {
            for vcpu in 0..3u64 {
                let (rig, paging, pages) = (&rig, &paging, &pages);
                scope.spawn(move || {
                    let mut random = Random::new(seed * 10 + vcpu);
                    let mut known: BTreeMap<u64, u8> = BTreeMap::new();
                    for _ in 0..2000 {
                        let index = random.below(pages.len() as u64 / 3) * 3 + vcpu;
                        let page = pages[index as usize];
                        let byte = *known.entry(page).or_insert_with(|| rig.byte(page));
                        match random.below(4) {
                            0 => {
                                let byte = 1 + (random.next() % 250) as u8;
                                let at = GuestAddress(page * PAGE_SIZE);
                                rig.ram.memory().write_slice(&content(byte), at).unwrap();
                                known.insert(page, byte);
                            }
                            1 => {
                                paging.discard(one(page));
                                rig.ram.discard(one(page)).unwrap();
                                known.insert(page, 0);
                            }
                            _ => assert_page(&rig.ram, page, byte),
                        }
                    }
                    for (page, byte) in known {
                        assert_page(&rig.ram, page, byte);
                    }
                });
            }
        });
        paging.set_prefault(Prefault::Max);
        complete(&paging, &events);
    }
}

/// Memory whose threads give pages up with `MADV_REMOVE`, of which the kernel tells.
#[test]
fn pages_that_a_thread_removes_are_zero_whatever_the_file_says() {
    for seed in 0..8 {
        let rig = Rig::new(some_pages(&mut Random::new(200 + seed), 70));
        let uffd = match Userfaultfd::open(true) {
            Ok(uffd) => uffd,
            Err(error) => return skipped(error),
        };
        let snapshot = rig.snapshot();
        let mappings = Mapping::all_of(rig.ram.memory());
        let missing =
            MissingPages::new(uffd, mappings.clone(), snapshot.content().unwrap()).unwrap();
        let (told, events) = channel();
        let tell = Box::new(move |event| told.send(event).unwrap());
        // One thread must be enough to read what is discarded while it places pages.
        let options = PagingOptions {
            threads: threads(1 + seed as usize % 2),
            ..PagingOptions::default()
        };
        let paging = Paging::start(missing, snapshot, options, tell).unwrap();
        paging.set_prefault(Prefault::Max);
        thread::scope(|scope| {
            for vcpu in 0..2u64 {
                let (rig, mappings) = (&rig, &mappings);
                scope.spawn(move || {
                    let mut random = Random::new(seed * 10 + vcpu);
                    let mut removed = Vec::new();
                    for _ in 0..100 {
                        let page = random.below(LOW / 2) * 2 + vcpu;
                        advice::remove(&mappings[0], one(page));
                        assert_page(&rig.ram, page, 0);
                        removed.push(page);
                    }
                    for page in (vcpu..LOW).step_by(2) {
                        let byte = if removed.contains(&page) {
                            0
                        } else {
                            rig.byte(page)
                        };
                        assert_page(&rig.ram, page, byte);
                    }
                });
            }
        });
        complete(&paging, &events);
    }
}

#[test]
fn whoever_needs_a_damaged_page_waits_and_the_page_is_named() {
    for prefault in [Prefault::Off, Prefault::Max] {
        let mut rig = Rig::new(some_pages(&mut Random::new(5), 80));
        let damaged = *rig.pages.keys().nth(rig.pages.len() / 2).unwrap();
        rig.damage(damaged);
        let Some((paging, events)) = rig.restore(prefault) else {
            return;
        };
        if prefault == Prefault::Max {
            // It does not matter before somebody needs it.
            eventually("the rest to be there", || {
                (paging.status().damaged == 1 && paging.status().missing == 1).then_some(())
            });
        }
        for page in all_pages().filter(|page| *page != damaged) {
            assert_page(&rig.ram, page, rig.byte(page));
        }
        assert!(events.try_recv().is_err());
        let went_on = Arc::new(AtomicBool::new(false));
        let (ram, flag) = (Arc::clone(&rig.ram), Arc::clone(&went_on));
        // This thread waits for ever.
        thread::spawn(move || {
            touch(&ram, damaged);
            flag.store(true, Ordering::SeqCst);
        });
        let Ok(PagingEvent::Failed(error)) = events.recv() else {
            panic!("it is told")
        };
        let address = format!("page at {:#x}", damaged * PAGE_SIZE);
        assert!(error.to_string().contains(&address), "{error}");
        let status = paging.status();
        assert!(status.failure.unwrap().contains(&address));
        assert_eq!(status.missing, 1);
        // Not even when the threads have ended.
        drop(paging);
        assert!(!went_on.load(Ordering::SeqCst));
    }
}

#[test]
fn a_page_that_another_process_has_made_is_named_and_not_trusted() {
    let mut rig = Rig::new(some_pages(&mut Random::new(6), 80));
    let stranger = rig.map_again(false);
    let Some((paging, events)) = rig.restore(Prefault::Off) else {
        return;
    };
    let page = *rig.pages.keys().nth(7).unwrap();
    // As a back end would that runs too early.
    stranger
        .memory()
        .write_obj(7u8, GuestAddress(page * PAGE_SIZE))
        .unwrap();
    paging.set_prefault(Prefault::Max);
    let Ok(PagingEvent::Failed(error)) = events.recv() else {
        panic!("it is told")
    };
    assert!(
        matches!(error, PagingError::Foreign(gpa) if gpa == page * PAGE_SIZE),
        "{error}"
    );
}

#[test]
fn a_small_page_brings_no_neighbour_to_life_whatever_huge_pages_are_allowed() {
    const ALLOWED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let before = std::fs::read_to_string(ALLOWED).unwrap_or_default();
    let before = before
        .split(['[', ']'])
        .nth(1)
        .unwrap_or("never")
        .to_owned();
    let mut tried = 0;
    for setting in ["never", "advise", "always"] {
        if let Err(error) = std::fs::write(ALLOWED, setting) {
            skipped(format_args!(
                "huge pages cannot be set to {setting} ({error})"
            ));
            continue;
        }
        let mut rig = Rig::new(some_pages(&mut Random::new(7), 50));
        // The mapping asks for huge pages, as the reference VMM's does.
        rig.machine
            .mappings
            .iter()
            .for_each(advice::ask_for_huge_pages);
        let restored = rig.restore(Prefault::Off);
        let Some((paging, events)) = restored else {
            break;
        };
        // Every fourth page first, so that a wrong neighbour is there before its turn.
        for from in [3, 0, 1, 2] {
            for page in all_pages().skip(from).step_by(4) {
                assert_page(&rig.ram, page, rig.byte(page));
            }
        }
        complete(&paging, &events);
        tried += 1;
    }
    let _ = std::fs::write(ALLOWED, before);
    println!("{tried} settings");
}

#[test]
fn a_file_of_other_memory_is_refused_before_anything_is_missing() {
    let rig = Rig::new(some_pages(&mut Random::new(8), 20));
    let other = GuestRam::map(vec![RamRegion::new(0, 64 * PAGE_SIZE).unwrap()]).unwrap();
    let mut machine = LazyMachine {
        soft: SoftDestination::default(),
        mappings: Mapping::all_of(other.memory()),
    };
    let refused = restore_lazily(
        &rig.snapshot(),
        &other,
        &mut machine,
        &rig.ownership,
        LazyRestore::default(),
        Box::new(|event| panic!("{event:?}")),
    );
    assert!(matches!(refused, Err(RestoreError::Snapshot(_))));
    assert_eq!(rig.ownership.get().owner, Owner::There);
    // A machine that cannot do it says so by itself.
    let content = MigrationBitmap::new(4);
    let uffd = Userfaultfd::open(false);
    if let Ok(uffd) = uffd {
        let nowhere = Mapping::in_another_process(0, range(0, 4)).unwrap();
        content.insert(range(0, 4));
        let refused = MissingPages::new(uffd, vec![nowhere], content);
        assert!(
            matches!(refused, Err(PagingError::Userfaultfd(_))),
            "{refused:?}"
        );
    }
}
