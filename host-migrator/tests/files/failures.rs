// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The disk is full, or fails, at every operation of a save.

use std::fs;
use std::sync::Arc;

use host_migrator::snapshot::open_storage;
use host_migrator::{
    DirectIo, FileSink, Migration, MigrationError, MigrationParams, SnapshotError,
};
use rustix::io::Errno;

use super::disk::Watched;
use super::mounted;
use super::rig::{load, save, some_pages, target};
use super::software_guest::Guest;
use super::software_guest::machine::DESCRIPTION;
use super::software_guest::memory::Memory;
use super::software_guest::workload::{Behaviour, Workload};

#[test]
fn whatever_operation_fails_the_guest_runs_on_and_the_old_snapshot_stays() {
    let folder = tempfile::tempdir().unwrap();
    let target = target(&folder.path().join("guest"));
    let old = some_pages(1);
    save(&target, &old).unwrap();
    let guest = Guest::new(Memory::new(300, 20));
    (0..60).for_each(|index| guest.write(index * 5));
    let guest = Arc::new(guest);
    let behaviour = Behaviour {
        seed: 3,
        hints: true,
        pause: 10,
        first_page: 0,
    };
    let workload = Workload::start(&guest, behaviour);
    let mut source = guest.source();
    let params = MigrationParams::default().with_max_rounds(2);
    let mut failed = 0;
    loop {
        let error = if failed % 2 == 0 {
            Errno::NOSPC
        } else {
            Errno::IO
        };
        let storage = open_storage(&target, DirectIo::Auto).unwrap();
        let storage = Watched::failing(storage, failed, error);
        let sink = FileSink::new(Box::new(storage), source.ram.layout(), DESCRIPTION);
        let sink = sink.and_then(|sink| sink.with_writers(1 + failed as u32 % 4));
        let saved = match sink {
            Ok(mut sink) => Migration::copy(&mut source, &params, &mut sink).map(|_| ()),
            Err(error) => Err(error.into()),
        };
        let Err(failure) = saved else {
            break;
        };
        assert!(
            matches!(&failure, MigrationError::Snapshot(SnapshotError::Io { source, .. })
                if source.raw_os_error() == Some(error.raw_os_error())),
            "{failed}: {failure}"
        );
        assert!(failure.to_string().contains("guest"), "{failure}");
        assert!(!guest.machine.is_stopped(), "{failed}");
        assert!(!guest.vcpu_log.is_running() && !guest.own_log.is_running());
        assert_eq!(load(&target).unwrap(), old, "{failed}");
        let entries = fs::read_dir(folder.path()).unwrap();
        assert_eq!(entries.count(), 1, "{failed}: a part of a file is left");
        failed += 1;
    }
    assert!(failed > 10, "only {failed} operations");
    workload.stop();
}

#[test]
fn a_full_disk_ends_the_save_and_what_was_on_it_stays() {
    let test = "failures::a_full_disk_ends_the_save_and_what_was_on_it_stays";
    let Some(folder) = mounted::folder(test, "-t tmpfs -o size=8m tmpfs") else {
        return;
    };
    let target = target(&folder.join("guest"));
    let old = some_pages(1);
    save(&target, &old).unwrap();
    let guest = Guest::new(Memory::new(4000, 20));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    let guest = Arc::new(guest);
    let behaviour = Behaviour {
        seed: 4,
        hints: false,
        pause: 10,
        first_page: 0,
    };
    let workload = Workload::start(&guest, behaviour);
    let mut source = guest.source();
    for writers in 1..=4 {
        for direct_io in [DirectIo::Auto, DirectIo::Off] {
            let sink = FileSink::create(&target, direct_io, source.ram.layout(), DESCRIPTION);
            let mut sink = sink.and_then(|sink| sink.with_writers(writers)).unwrap();
            let saved = Migration::copy(&mut source, &MigrationParams::default(), &mut sink);
            drop(sink);
            let failure = saved.unwrap_err();
            assert!(
                matches!(&failure, MigrationError::Snapshot(SnapshotError::Io { source, .. })
                    if source.raw_os_error() == Some(Errno::NOSPC.raw_os_error())),
                "{failure}"
            );
            assert!(!guest.machine.is_stopped());
            assert_eq!(load(&target).unwrap(), old);
            let entries = fs::read_dir(&folder).unwrap();
            assert_eq!(entries.count(), 1, "a part of a file is left");
        }
    }
    workload.stop();
}
