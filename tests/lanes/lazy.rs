// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest runs before its memory was read from the file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use host_migrator::paging::{PagingStatus, Userfaultfd};
use lacuna::args::GuestKind;
use lacuna::compare::{Host, ask_oracle};
use lacuna::machine::{MachineState, Status};
use spec::PAGE_SIZE;
use spec::stamp::Random;
use spec_testing::skipped;

use crate::files::{open, save, uri};
use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, command, end_of, lacuna, release_and_check,
    skipped_without_kvm, status, whole_pass,
};

/// A lab with a saved guest, whose source is held; `None` if lazy restores cannot run here.
fn saved(guest: BareGuest, test: &str) -> Option<(Lab, Host, PathBuf)> {
    if skipped_without_kvm(test) {
        return None;
    }
    if let Err(error) = Userfaultfd::open(false) {
        skipped(error);
        return None;
    }
    let lab = Lab::new(guest);
    let mut source = lab.running("source");
    let path = lab.folder().join("snapshot");
    save(&mut source, &path, true);
    Some((lab, source, path))
}

fn lazily(lab: &Lab, name: &'static str, path: &Path, flags: &[&str]) -> Host {
    let mut all = vec!["--lazy"];
    all.extend(flags);
    let host = lab.restoring_with(name, &uri(path), &all);
    let mut host = host.expect("the host starts");
    host.wait_until("the guest to run", PATIENCE, |status| {
        Ok(status.restore.is_some())
    })
    .expect("the guest runs");
    host
}

fn paging(status: &Status) -> PagingStatus {
    let restore = status.restore.clone().expect("a guest from a file");
    restore.lazy.expect("a lazy restore")
}

fn until_all_is_here(host: &mut Host) -> PagingStatus {
    let status = host.wait_until("all memory", PATIENCE, |status| {
        Ok(paging(status).missing == 0)
    });
    paging(&status.expect("all memory comes"))
}

#[test]
fn a_guest_that_runs_before_its_memory_finds_every_stamp_right_at_every_pace() {
    let Some((lab, _source, path)) = saved(BareGuest::busy(), "lazy, paces") else {
        return;
    };
    let before = fs::read(&path).unwrap();
    for (name, pace) in [("off", "off"), ("paced", "40"), ("max", "max")] {
        let mut host = lazily(&lab, name, &path, &["--prefault", pace, "--threads", "3"]);
        assert_eq!(whole_pass(&mut host).wrong, 0, "{pace}");
        let at_end = match pace {
            "off" => paging(&status(&host)),
            _ => until_all_is_here(&mut host),
        };
        let restore = status(&host).restore.unwrap_or_default();
        println!(
            "{pace}: first instruction after {:.1} ms; {at_end:?}",
            restore.first_instruction_ms
        );
        assert_eq!((at_end.failure, at_end.damaged), (None, 0));
        assert_eq!(at_end.pages, open(&path).commit().pages);
        command(&host, &["quit", "--end-guest"]).unwrap();
        assert_eq!(end_of(&mut host), Some(0));
    }
    assert!(fs::read(&path).unwrap() == before, "the file is as it was");
}

#[test]
fn a_held_guest_gets_all_its_memory_and_leaves_with_hints_afterwards() {
    let Some((lab, source, path)) = saved(BareGuest::busy(), "lazy, oracle") else {
        return;
    };
    let mut host = lazily(&lab, "lazy", &path, &["--hold"]);
    assert_eq!(status(&host).machine, MachineState::Held);
    let at_end = until_all_is_here(&mut host);
    assert!(at_end.loaded > 0, "{at_end:?}");
    let verdict = ask_oracle(GuestKind::Bare, &source, &host).unwrap();
    assert_eq!(verdict.pages_compared, (256 << 20) / PAGE_SIZE);
    lab.assert_right(&verdict, "lazy");
    release_and_check(&mut host);
    let moved = lab.move_whole(&Migration::default(), &mut host, "onwards");
    assert!(moved.report.totals.pages_sent > 0);
}

#[test]
fn a_guest_whose_memory_is_not_all_here_is_not_migrated_and_not_saved() {
    let Some((lab, _source, path)) = saved(BareGuest::default(), "lazy, leaving") else {
        return;
    };
    let mut host = lazily(&lab, "lazy", &path, &["--prefault", "off"]);
    let other = uri(&lab.folder().join("other"));
    for target in [other.as_str(), "tcp:127.0.0.1:1"] {
        let refused = command(&host, &["send", target]).unwrap_err();
        assert!(refused.contains("still coming"), "{refused}");
    }
    assert_eq!(whole_pass(&mut host).wrong, 0);
}

#[test]
fn a_guest_that_needs_a_damaged_page_is_stopped_and_the_page_is_named() {
    let Some((lab, _source, path)) = saved(BareGuest::default(), "lazy, damage") else {
        return;
    };
    // Half of all pages: the guest checks its stamps, and meets one.
    let snapshot = open(&path);
    let mut slots = Vec::new();
    let each = &mut |run: spec::PageRange| slots.extend(run.first()..run.end());
    snapshot.pages(each).unwrap();
    let places = snapshot.places();
    drop(snapshot);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    for page in slots.iter().skip(slots.len() / 2) {
        // Memory of this guest begins at 0, so the slot is the page's number.
        let at = places.page(*page) + 100;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
    let host = lab.restoring_with("damaged", &uri(&path), &["--lazy"]);
    let mut host = host.expect("the host starts");
    let ended = host.wait_until("the guest to be stopped", PATIENCE, |status| {
        Ok(status.machine == MachineState::Ended)
    });
    let failure = ended
        .unwrap()
        .guest
        .and_then(|guest| guest.failure)
        .unwrap();
    assert!(
        failure.contains("of the guest's memory is damaged"),
        "{failure}"
    );
    command(&host, &["quit"]).unwrap();
    assert_eq!(end_of(&mut host), Some(0));
}

#[test]
fn a_restore_that_is_killed_at_any_moment_harms_nothing_and_can_be_made_again() {
    let Some((lab, _source, path)) = saved(BareGuest::default(), "lazy, killed") else {
        return;
    };
    let mut random = Random::new(13);
    for _ in 0..5 {
        let host = lab.restoring_with("killed", &uri(&path), &["--lazy", "--prefault", "100"]);
        let mut host = host.expect("the host starts");
        // At any moment, so no moment is waited for.
        thread::sleep(Duration::from_millis(random.below(300)));
        host.machine.kill();
    }
    let mut host = lazily(&lab, "last", &path, &[]);
    until_all_is_here(&mut host);
    assert_eq!(whole_pass(&mut host).wrong, 0);
}

#[test]
fn flags_of_a_lazy_restore_are_for_files_only() {
    let said = crate::lab::lacuna(&[
        "receive",
        "tcp:127.0.0.1:0",
        "--control",
        "/nowhere",
        "--lazy",
    ]);
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        !said.status.success() && text.contains("file:PATH"),
        "{text}"
    );
    for flags in [
        ["--prefault", "max"],
        ["--prefault", "0"],
        ["--threads", "0"],
    ] {
        let mut args = vec!["receive", "file:/nowhere", "--control", "/nowhere"];
        args.extend(flags);
        let said = crate::lab::lacuna(&args);
        assert_eq!(said.status.code(), Some(2), "{flags:?}");
    }
}

#[test]
fn compare_restores_a_guest_lazily_and_counts_its_faults() {
    if skipped_without_kvm("lazy, compare") {
        return;
    }
    if let Err(error) = Userfaultfd::open(false) {
        return skipped(error);
    }
    let memory = [
        "--memory", "256M", "--in-use", "32M", "--freed", "128M", "--hints", "on",
    ];
    let mut arguments = vec!["compare", "--transport", "file", "--restore", "lazy"];
    arguments.extend(["--prefault", "off", "--max-rounds", "20"]);
    arguments.extend(["--check-trace", "--json"]);
    arguments.extend(memory);
    let output = lacuna(&arguments);
    assert!(output.status.success(), "{output:?}");
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["pages_wrong"], 0, "{record}");
    assert_eq!(record["guest_wrong"], 0, "{record}");
    assert_eq!(record["pages_compared"], 256 << 8, "{record}");
    // Nothing is read before the guest asks for it, and it checks all that it uses.
    assert!(
        record["faults"].as_u64().unwrap() * PAGE_SIZE >= 32 << 20,
        "{record}"
    );
    assert!(record["fault_p50_us"].as_f64() <= record["fault_p99_us"].as_f64());
    assert!(record["first_instruction_ms"].as_f64() > Some(0.0));
    for wrong in [
        &["--restore", "lazy"][..],
        &["--transport", "file", "--prefault", "off"],
    ] {
        let refused = lacuna(&[&["compare"], wrong].concat());
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    }
}
