// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest is saved into a file while it runs, and restored from it. Each lab checks in the end that the trace holds to the
//! rule.

use std::fs::{self, File};
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use host_migrator::report::stats::MigrationState;
use host_migrator::{Snapshot, SnapshotTarget};
use lacuna::args::GuestKind;
use lacuna::compare::{Host, ask_oracle};
use lacuna::control::{Command, MigrateArguments};
use lacuna::machine::MachineState;
use spec::PAGE_SIZE;

use crate::lab::{
    BareGuest, Lab, PATIENCE, command, end_of, ends, lacuna, release_and_check,
    skipped_without_kvm, status, tell, whole_pass,
};

pub fn uri(path: &Path) -> String {
    format!("file:{}", path.display())
}

pub fn open(path: &Path) -> Snapshot {
    let target: SnapshotTarget = uri(path).parse().expect("the name of a file");
    Snapshot::open(&target).expect("a complete snapshot")
}

/// Asks `source` to save its guest, and waits until it has.
pub fn save(source: &mut Host, path: &Path, hold: bool) {
    let arguments = MigrateArguments {
        hold,
        // However slow the disk is beside other work.
        max_rounds: NonZeroU32::new(20),
        ..MigrateArguments::to(uri(path))
    };
    tell(source, &Command::Migrate(arguments.into()));
    ends(source, MigrationState::Completed);
}

/// A new host that holds the guest of the snapshot at `path`.
pub fn restored(lab: &Lab, name: &'static str, path: &Path) -> Host {
    let mut host = lab.restoring(name, &uri(path)).expect("the host starts");
    host.wait_until("the guest to be restored", PATIENCE, |status| {
        Ok(status.machine == MachineState::Held)
    })
    .expect("the guest is restored");
    host
}

#[test]
fn a_guest_that_writes_all_the_time_is_restored_page_by_page_as_it_was() {
    if skipped_without_kvm("files, oracle") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let path = lab.folder().join("snapshot");
    save(&mut source, &path, true);
    assert_eq!(status(&source).machine, MachineState::Held);
    for name in ["first", "second"] {
        let mut destination = restored(&lab, name, &path);
        let verdict = ask_oracle(GuestKind::Bare, &source, &destination).unwrap();
        assert_eq!(verdict.pages_compared, (256 << 20) / PAGE_SIZE);
        lab.assert_right(&verdict, name);
        release_and_check(&mut destination);
        command(&destination, &["quit", "--end-guest"]).unwrap();
        assert_eq!(end_of(&mut destination), Some(0));
    }
    // As small as what is in it: with hints most of memory is free.
    let snapshot = open(&path);
    let allocated = fs::metadata(&path).unwrap().blocks() * 512;
    let pages = snapshot.commit().pages * PAGE_SIZE;
    println!("{allocated} bytes on the disk, {pages} in pages");
    assert!(
        allocated < pages + pages / 50 + (256 << 10),
        "{allocated} for {pages}"
    );
    // The guest runs on when it is told to.
    command(&source, &["cont"]).unwrap();
    assert_eq!(status(&source).machine, MachineState::Running);
    assert_eq!(whole_pass(&mut source).wrong, 0);
}

#[test]
fn a_guest_runs_on_after_it_was_saved_and_can_be_saved_again() {
    if skipped_without_kvm("files, live") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let path = lab.folder().join("snapshot");
    for _ in 0..3 {
        save(&mut source, &path, false);
        assert_eq!(status(&source).machine, MachineState::Running);
        assert_eq!(whole_pass(&mut source).wrong, 0);
    }
    // The command says what it has done.
    let file = uri(&path);
    let said = lacuna(&["send", &file, "--control", source.control.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("saved to") && said.contains("the guest runs on"),
        "{said}"
    );
    let mut destination = restored(&lab, "destination", &path);
    release_and_check(&mut destination);
}

#[test]
fn a_guest_that_tells_slowly_what_is_free_gets_a_small_file_if_it_may_go_on() {
    if skipped_without_kvm("files, slow hints") {
        return;
    }
    let lab = Lab::new(BareGuest {
        memory: "96M",
        in_use: "24M",
        freed: "48M",
        answer: "slow",
        ..BareGuest::default()
    });
    let mut source = lab.running("source");
    let path = lab.folder().join("snapshot");
    let pages = |wait: u32, source: &mut Host| {
        let arguments = MigrateArguments {
            wait_for_hints: Some(wait),
            max_rounds: NonZeroU32::new(20),
            ..MigrateArguments::to(uri(&path))
        };
        tell(source, &Command::Migrate(arguments.into()));
        ends(source, MigrationState::Completed);
        open(&path).commit().pages * PAGE_SIZE
    };
    let (at_once, later) = (pages(0, &mut source), pages(600, &mut source));
    println!("{at_once} bytes in pages, or {later} after all hints");
    assert!(later * 2 < at_once, "{at_once} and {later}");
    let mut destination = restored(&lab, "destination", &path);
    release_and_check(&mut destination);
    assert_eq!(whole_pass(&mut source).wrong, 0);
}

#[test]
fn a_damaged_file_is_named_by_inspect_and_not_restored() {
    if skipped_without_kvm("files, damage") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let path = lab.folder().join("snapshot");
    save(&mut source, &path, false);
    let inspect = |path: &Path| lacuna(&["inspect", path.to_str().unwrap(), "--picture"]);
    let whole = inspect(&path);
    let text = String::from_utf8_lossy(&whole.stdout).into_owned();
    println!("{text}");
    assert!(
        whole.status.success() && text.contains("all right"),
        "{text}"
    );

    let snapshot = open(&path);
    let mut first = None;
    snapshot
        .pages(&mut |run| first = first.or(Some(run)))
        .unwrap();
    let page = first.unwrap().first();
    // Memory of this guest begins at 0, so the slot is the page's number.
    let at = snapshot.places().page(page) + 100;
    drop(snapshot);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    let damaged = inspect(&path);
    let text = String::from_utf8_lossy(&damaged.stdout).into_owned();
    let address = format!("page at {:#x}", page * PAGE_SIZE);
    assert!(
        !damaged.status.success() && text.contains(&address),
        "{text}"
    );
    match lab.restoring("damaged", &uri(&path)) {
        Ok(mut destination) => assert_eq!(end_of(&mut destination), Some(1)),
        // It was faster than the question whether it is up.
        Err(ended) => assert!(ended.to_string().contains(&address), "{ended}"),
    }

    file.set_len(at).unwrap();
    assert!(!inspect(&path).status.success());
    assert_eq!(whole_pass(&mut source).wrong, 0);
}

#[test]
fn a_saver_that_is_killed_leaves_the_old_snapshot_and_the_next_one_completes() {
    if skipped_without_kvm("files, killed") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut first = lab.running("first");
    let path = lab.folder().join("snapshot");
    save(&mut first, &path, false);
    let old = *open(&path).header();
    let slow = MigrateArguments {
        max_bandwidth: Some(1 << 20),
        ..MigrateArguments::to(uri(&path))
    };
    tell(&first, &Command::Migrate(slow.into()));
    crate::lab::until_round(&mut first, 1);
    // Another machine cannot write the file meanwhile.
    let mut second = lab.running("second");
    let refused = command(&second, &["send", &uri(&path)]).unwrap_err();
    assert!(refused.contains("another save writes it"), "{refused}");
    first.machine.kill();
    assert!(lab.folder().join("snapshot.partial").exists());
    assert_eq!(*open(&path).header(), old);
    save(&mut second, &path, false);
    assert_ne!(*open(&path).header(), old);
    assert!(!lab.folder().join("snapshot.partial").exists());
    assert_eq!(whole_pass(&mut second).wrong, 0);
    let verified = open(&path)
        .verify(std::num::NonZeroUsize::MIN, &|_| ())
        .unwrap();
    assert_eq!(verified.damaged, 0);
    // Two guests run in this lab, and a trace is about one.
    let _ = lab.rule();
}

#[test]
fn a_limit_of_file_sizes_fails_the_save_and_not_the_guest() {
    if skipped_without_kvm("files, limit of file sizes") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let path = lab.folder().join("snapshot");
    let limit = |limit: &str| {
        let status = std::process::Command::new("prlimit")
            .arg(format!("--pid={}", source.machine.pid()))
            .arg(format!("--fsize={limit}"))
            .status()
            .expect("prlimit is there");
        assert!(status.success());
    };
    limit("1048576:unlimited");
    let arguments = MigrateArguments::to(uri(&path));
    let refused = source
        .client()
        .unwrap()
        .tell(&Command::Migrate(arguments.into()));
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("File too large"), "{why}");
    assert!(!path.exists() && !lab.folder().join("snapshot.partial").exists());
    assert_eq!(status(&source).machine, MachineState::Running);
    limit("unlimited:unlimited");
    assert_eq!(whole_pass(&mut source).wrong, 0);
    save(&mut source, &path, false);
}

#[test]
fn compare_saves_and_restores_a_guest_that_writes_and_every_page_is_right() {
    if skipped_without_kvm("files, compare") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kept");
    for (direct_io, channels) in [("auto", "3"), ("off", "1")] {
        let output = lacuna(&[
            "compare",
            "--transport",
            "file",
            "--file",
            path.to_str().unwrap(),
            "--direct-io",
            direct_io,
            "--multifd-channels",
            channels,
            "--memory",
            "256M",
            "--in-use",
            "32M",
            "--freed",
            "128M",
            "--hints",
            "off,on",
            "--max-rounds",
            "20",
            "--check-trace",
            "--json",
        ]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let records: Vec<serde_json::Value> = (text.lines())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(records.len(), 2);
        for record in &records {
            assert_eq!(record["pages_wrong"], 0, "{record}");
            assert_eq!(record["guest_wrong"], 0, "{record}");
            assert_eq!(record["pages_compared"], 256 << 8, "{record}");
            let figure = |name: &str| record[name].as_f64().unwrap();
            assert!(
                figure("save_ms") > 0.0 && figure("restore_ms") > 0.0,
                "{record}"
            );
            assert!(figure("file_allocated_bytes") <= figure("file_bytes") + 4096.0);
        }
        let blocks = |index: usize| records[index]["file_allocated_bytes"].as_u64().unwrap();
        assert!(blocks(1) * 2 < blocks(0), "{} and {}", blocks(1), blocks(0));
        // That of the last run is left.
        assert_eq!(open(&path).layout().pages() * PAGE_SIZE, 256 << 20);
    }
}
