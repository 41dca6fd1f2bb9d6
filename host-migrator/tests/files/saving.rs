// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running guest is saved, and restored as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use host_migrator::destination::{RestoreError, restore};
use host_migrator::{
    DirectIo, FileSink, Migration, MigrationParams, MigrationReport, Owner, OwnershipRecord,
    Snapshot, SnapshotError, SnapshotTarget,
};
use rustix::fs::SeekFrom;
use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};

use super::rig::{load, save, some_pages, target, threads};
use super::software_guest::Guest;
use super::software_guest::machine::{DESCRIPTION, SoftDestination};
use super::software_guest::memory::{Memory, like};
use super::software_guest::workload::{Behaviour, Workload};

/// Saves a guest by as many threads as `params` have channels. Its machine stands still afterwards.
fn save_guest(guest: &Guest, target: &SnapshotTarget, params: &MigrationParams) -> MigrationReport {
    save_guest_as(guest, target, DirectIo::Auto, params)
}

fn save_guest_as(
    guest: &Guest,
    target: &SnapshotTarget,
    direct_io: DirectIo,
    params: &MigrationParams,
) -> MigrationReport {
    let mut source = guest.source();
    guest.machine.stay_stopped();
    let sink = FileSink::create(target, direct_io, source.ram.layout(), DESCRIPTION);
    let sink = sink.and_then(|sink| sink.with_writers(params.multifd_channels));
    let mut sink = sink.unwrap();
    let report = Migration::copy(&mut source, params, &mut sink).unwrap();
    let saved = sink.saved().unwrap();
    assert!(saved.pages <= report.totals.pages_sent);
    report
}

/// Restores the guest, twice, and compares it with what the guest has left. The file stays as it is.
fn assert_restored(guest: &Guest, target: &SnapshotTarget, report: &MigrationReport, count: usize) {
    let before = fs::read(&target.path).unwrap();
    for _ in 0..2 {
        let snapshot = Snapshot::open(target).unwrap();
        let ram = like(guest.memory.ram.as_ref());
        let garbage = vec![0xaa; 3 * PAGE_SIZE as usize];
        ram.write(PageRange::new(1, 3).unwrap(), &garbage).unwrap();
        let mut machine = SoftDestination::default();
        let ownership = OwnershipRecord::there();
        let nobody = &|_| ();
        restore(
            &snapshot,
            &ram,
            &mut machine,
            &ownership,
            threads(count),
            nobody,
        )
        .unwrap();
        assert!(machine.loaded && machine.runs);
        assert_eq!(ownership.get().owner, Owner::Here);
        let wrong = guest.memory.wrong_pages(&ram, report.skipped.as_deref());
        assert_eq!(wrong, []);
    }
    assert!(fs::read(&target.path).unwrap() == before);
}

/// How many guests are saved with random parameters: as many as the environment says, or a few.
fn random_runs() -> u64 {
    let asked = std::env::var("LACUNA_RANDOM_RUNS");
    asked.map_or(12, |count| count.parse().unwrap())
}

/// Makes sure that the file system has a block only for pages that are in the snapshot.
fn assert_no_block_without_page(snapshot: &Snapshot) {
    let file = fs::File::open(snapshot.path()).unwrap();
    if rustix::fs::fstatfs(&file).unwrap().f_bsize != PAGE_SIZE as i64 {
        spec_testing::skipped("the file system's blocks are not of 4096 bytes");
        return;
    }
    let (mut at, end) = (snapshot.places().pages_at, snapshot.places().state_at);
    let mut blocks = 0;
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        at = hole.min(end);
        blocks += at.saturating_sub(data) / PAGE_SIZE;
        if at == end {
            break;
        }
    }
    assert_eq!(blocks, snapshot.commit().pages);
}

/// Bytes of `path` on the disk.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_guest_that_goes_on_writing_is_restored_as_it_was_when_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    let target = target(&path);
    for seed in 0..random_runs() {
        let mut random = Random::new(seed);
        let guest = Guest::new(Memory::new(
            1000 + random.below(3000),
            1 + random.below(500),
        ));
        let pages: Vec<u64> = guest.memory.pages().collect();
        for _ in 0..random.below(2000) {
            guest.write(pages[random.below(pages.len() as u64) as usize]);
        }
        let guest = Arc::new(guest);
        let behaviour = Behaviour {
            seed,
            hints: random.below(2) == 0,
            pause: random.below(30),
            first_page: 0,
        };
        let workload = Workload::start(&guest, behaviour);
        let params = MigrationParams::default()
            .with_downtime_limit(Duration::ZERO)
            .with_max_rounds(1 + random.below(5) as u32)
            .with_multifd_channels(1 + random.below(6) as u32)
            .with_sync_pages((random.below(2) == 0).then_some(500));
        let direct_io = [DirectIo::Auto, DirectIo::Off][random.below(2) as usize];
        let report = save_guest_as(&guest, &target, direct_io, &params);
        assert_restored(&guest, &target, &report, 1 + random.below(4) as usize);
        assert_no_block_without_page(&Snapshot::open(&target).unwrap());
        let entries = fs::read_dir(folder.path()).unwrap();
        assert_eq!(entries.count(), 1, "nothing but the snapshot is left");
        guest.machine.take_back();
        workload.stop();
    }
}

#[test]
fn a_page_that_is_hinted_after_it_was_written_into_the_file_is_taken_out_again() {
    let folder = tempfile::tempdir().unwrap();
    let target = target(&folder.path().join("guest"));
    let guest = Arc::new(Guest::new(Memory::new(500, 0)));
    (0..400).for_each(|pfn| guest.write(pfn));
    let theirs = Arc::clone(&guest);
    guest.hints.on_close(move |epoch| {
        if epoch != 1 {
            return;
        }
        (100..200).for_each(|pfn| theirs.memory.free(pfn));
        theirs.hints.hint(PageRange::new(100, 100).unwrap());
        // These are used again at once.
        (190..200).for_each(|pfn| theirs.write(pfn));
    });
    let params = MigrationParams::default()
        .with_downtime_limit(Duration::ZERO)
        .with_max_rounds(1);
    let report = save_guest(&guest, &target, &params);
    let snapshot = Snapshot::open(&target).unwrap();
    assert_eq!(snapshot.commit().pages, 310);
    assert_no_block_without_page(&snapshot);
    assert_eq!(report.totals.pages_discarded, 100);
    assert_eq!(report.totals.pages_hinted_too_late, 100);
    assert_restored(&guest, &target, &report, 1);
}

#[test]
fn a_guest_runs_on_while_its_snapshot_is_being_completed() {
    let folder = tempfile::tempdir().unwrap();
    let target = target(&folder.path().join("guest"));
    let guest = Guest::new(Memory::new(500, 0));
    (0..100).for_each(|pfn| guest.write(pfn));
    let mut source = guest.source();
    let mut sink =
        FileSink::create(&target, DirectIo::Off, source.ram.layout(), DESCRIPTION).unwrap();
    let seen = Arc::new(seen::Seen::default());
    let copy = {
        let (seen, machine) = (Arc::clone(&seen), Arc::clone(&guest.machine));
        host_migrator::GuestCopy::observed(MigrationParams::default(), move |status| {
            seen.push(status.status, machine.is_stopped());
        })
    };
    copy.run(&mut source, &mut sink).unwrap();
    let seen = seen.take();
    assert!(
        seen.ends_with(&[
            (host_migrator::MigrationState::Device, true),
            (host_migrator::MigrationState::Syncing, false),
            (host_migrator::MigrationState::Completed, false),
        ]),
        "{seen:?}"
    );
    assert_eq!(guest.ownership.get().owner, Owner::Here);
}

/// What an observer has seen.
mod seen {
    use host_migrator::MigrationState;
    use std::sync::Mutex;

    #[derive(Default)]
    pub struct Seen(Mutex<Vec<(MigrationState, bool)>>);

    impl Seen {
        pub fn push(&self, state: MigrationState, stopped: bool) {
            self.0.lock().unwrap().push((state, stopped));
        }

        pub fn take(&self) -> Vec<(MigrationState, bool)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }
}

#[test]
fn a_guest_of_zeros_and_one_with_nothing_in_use_need_next_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    let target = target(&path);
    for zeros in [true, false] {
        let guest = Guest::new(Memory::new(4000, 100));
        if zeros {
            guest.memory.pages().for_each(|pfn| guest.write_zeros(pfn));
        }
        let report = save_guest(&guest, &target, &MigrationParams::default());
        assert_restored(&guest, &target, &report, 3);
        assert_eq!(Snapshot::open(&target).unwrap().commit().pages, 0);
        assert!(allocated(&path) <= 64 << 10, "{}", allocated(&path));
    }
}

#[test]
fn a_file_does_not_grow_however_often_pages_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut lengths = Vec::new();
    for rounds in [1, 30] {
        let path = folder.path().join(rounds.to_string());
        let guest = Arc::new(Guest::new(Memory::new(2000, 0)));
        guest.memory.pages().for_each(|pfn| guest.write(pfn));
        let behaviour = Behaviour {
            seed: 1,
            hints: false,
            pause: 0,
            first_page: 0,
        };
        let workload = Workload::start(&guest, behaviour);
        let params = super::software_guest::rounds(rounds);
        let report = save_guest(&guest, &target(&path), &params);
        assert_restored(&guest, &target(&path), &report, 2);
        lengths.push(fs::metadata(&path).unwrap().len());
        guest.machine.take_back();
        workload.stop();
    }
    assert_eq!(lengths[0], lengths[1]);
}

#[test]
fn a_snapshot_inside_a_file_leaves_the_rest_of_the_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let base = 12 << 12;
    let end = base + (4 << 20);
    let mut before = vec![0x55; base];
    before.resize(end, 0x11);
    before.resize(end + 5000, 0x66);
    fs::write(&path, &before).unwrap();
    let target = SnapshotTarget {
        path: path.clone(),
        offset: Some(base as u64),
    };
    for byte in [1, 100] {
        let pages = some_pages(byte);
        let saved = save(&target, &pages).unwrap();
        assert!(base + saved.length as usize <= end);
        assert_eq!(load(&target).unwrap(), pages);
        let after = fs::read(&path).unwrap();
        assert_eq!(after[..base], before[..base]);
        assert_eq!(after[end..], before[end..]);
    }
    let elsewhere = SnapshotTarget {
        offset: Some(0),
        ..target
    };
    assert!(matches!(
        load(&elsewhere),
        Err(SnapshotError::Format { .. })
    ));
}

#[test]
fn a_file_is_not_overwritten_while_a_guest_is_restored_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    save(&target(&path), &some_pages(1)).unwrap();
    let in_place = SnapshotTarget {
        offset: Some(0),
        ..target(&path)
    };
    let open = Snapshot::open(&target(&path)).unwrap();
    let refused = save(&in_place, &some_pages(9)).unwrap_err();
    assert!(matches!(refused, SnapshotError::Busy(_)), "{refused}");
    // A save that replaces the file does not touch it.
    save(&target(&path), &some_pages(50)).unwrap();
    open.load(&super::rig::memory(), threads(1), &|_| ())
        .unwrap();
    drop(open);
    assert_eq!(load(&target(&path)).unwrap(), some_pages(50));
    save(&in_place, &some_pages(9)).unwrap();
    assert_eq!(load(&target(&path)).unwrap(), some_pages(9));
}

#[test]
fn another_machines_guest_is_refused_before_its_memory_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let target = target(&folder.path().join("guest"));
    save(&target, &some_pages(1)).unwrap();
    let snapshot = Snapshot::open(&target).unwrap();
    let ownership = OwnershipRecord::there();
    let mut machine = SoftDestination::default();
    let other = Memory::new(200, 101).ram;
    let restored = restore(
        &snapshot,
        &other,
        &mut machine,
        &ownership,
        threads(1),
        &|_| (),
    );
    assert!(
        matches!(
            restored,
            Err(RestoreError::Snapshot(SnapshotError::Layout { .. }))
        ),
        "{restored:?}"
    );
    assert!(!machine.loaded);
    assert_eq!(ownership.get().owner, Owner::There);

    let storage = host_migrator::snapshot::open_storage(&target, DirectIo::Off).unwrap();
    let layout = super::rig::layout();
    let writer =
        host_migrator::snapshot::SnapshotWriter::begin(storage, &layout, b"another machine");
    let state = super::rig::machine_state();
    writer.unwrap().finish(&state, Default::default()).unwrap();
    drop(snapshot);
    let snapshot = Snapshot::open(&target).unwrap();
    let ram = super::rig::memory();
    let restored = restore(
        &snapshot,
        &ram,
        &mut machine,
        &ownership,
        threads(1),
        &|_| (),
    );
    let error = restored.unwrap_err().to_string();
    assert!(error.contains("it needs another machine"), "{error}");
}
