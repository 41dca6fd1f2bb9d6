// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest is handed over before its memory, the connection breaks for good, and a guest is made of what both sides have left.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use host_migrator::destination::PostcopyPhase;
use host_migrator::paging::PagingStatus;
use host_migrator::report::stats::MigrationState;
use host_migrator::snapshot::HalfFile;
use host_migrator::{PAGE_SIZE, Session, SnapshotTarget};
use lacuna::args::CutKind;
use lacuna::compare::{Host, Line};
use lacuna::machine::MachineState;
use spec::stamp::Random;

use crate::files::restored;
use crate::lab::{
    BareGuest, Lab, PATIENCE, command, end_of, ends, hand_over, lacuna, release_and_check,
    skipped_without_postcopy, status, until_paused, whole_pass,
};

/// A guest whose postcopy has broken, on both sides.
struct Broken {
    lab: Lab,
    source: Host,
    destination: Host,
    _line: Line,
}

impl Broken {
    /// The connection breaks so long `after` the hand-over, or earlier if all memory has come by then. `None` if that cannot be tried
    /// here.
    fn new(test: &str, after: Duration) -> Option<Self> {
        Self::with_destination(test, after, false)
    }

    /// As [`Broken::new`]. The destination may `hold` the guest: then it touches nothing.
    fn with_destination(test: &str, after: Duration, hold: bool) -> Option<Self> {
        if skipped_without_postcopy(test) {
            return None;
        }
        (0..).find_map(|halvings| Self::broken_after(after / (1 << halvings), hold))
    }

    /// `None` if all memory has come by then.
    fn broken_after(after: Duration, hold: bool) -> Option<Self> {
        let lab = Lab::new(BareGuest::busy());
        let mut source = lab.running("source");
        let (mut destination, uri) = lab.receiving("destination", hold);
        let line = Line::to(&uri).unwrap();
        hand_over(&mut source, &line.address(), 4 << 20);
        for side in [&source, &destination] {
            let refused = command(side, &["save-half", "/nowhere/half"]).unwrap_err();
            assert!(refused.contains("broken"), "{refused}");
        }
        thread::sleep(after);
        line.cut(CutKind::Close);
        let missing = until_paused(&mut source, &mut destination)?;
        assert!(missing > 0, "nothing is missing");
        Some(Self {
            lab,
            source,
            destination,
            _line: line,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.folder().join(name)
    }

    /// Makes a snapshot of `halves`. Returns what is said, or the error.
    fn reconcile(&self, halves: &[&str]) -> Result<String, String> {
        let whole = self.path("whole");
        let halves: Vec<_> = halves.iter().map(|name| self.path(name)).collect();
        let mut args = vec!["reconcile", "--output", whole.to_str().unwrap()];
        args.extend(halves.iter().map(|half| half.to_str().unwrap()));
        let output = lacuna(&args);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

fn save_half(host: &Host, path: &Path) {
    command(host, &["save-half", path.to_str().unwrap()]).unwrap();
}

#[test]
fn a_guest_of_two_halves_finds_every_stamp_right_and_runs_in_one_place_only() {
    let Some(mut broken) = Broken::new("halves, whole", Duration::ZERO) else {
        return;
    };
    // A half that cannot be saved changes nothing.
    for side in [&broken.source, &broken.destination] {
        command(side, &["save-half", "/nowhere/half"]).unwrap_err();
    }
    assert_eq!(status(&broken.destination).machine, MachineState::Running);
    assert_eq!(
        status(&broken.source).migration.status,
        MigrationState::PostcopyPaused
    );
    save_half(&broken.destination, &broken.path("destination-half"));
    assert_eq!(status(&broken.destination).machine, MachineState::Ended);
    save_half(&broken.source, &broken.path("source-half"));
    let ended = ends(&mut broken.source, MigrationState::HandedOverInPart);
    let why = ended.error_desc.unwrap_or_default();
    assert!(why.contains("lacuna reconcile"), "{why}");
    // Neither side has the guest any more.
    for refused in ["cont", "resume"] {
        command(&broken.destination, &[refused]).unwrap_err();
        command(&broken.source, &[refused]).unwrap_err();
    }
    command(&broken.destination, &["recover", "tcp:127.0.0.1:0"]).unwrap_err();
    assert_ne!(status(&broken.source).ownership.session, Session(0));

    let refused = broken.reconcile(&["destination-half"]).unwrap_err();
    assert!(refused.contains("are in no half"), "{refused}");
    println!(
        "{}",
        broken
            .reconcile(&["source-half", "destination-half"])
            .unwrap()
    );
    for host in [&mut broken.source, &mut broken.destination] {
        command(host, &["quit"]).unwrap();
        assert_eq!(end_of(host), Some(0));
    }
    let mut whole = restored(&broken.lab, "whole", &broken.path("whole"));
    release_and_check(&mut whole);
}

#[test]
fn a_guest_goes_on_with_the_file_of_a_source_that_was_killed_and_is_not_started_anew() {
    let runs: u64 = std::env::var(RUNS).map_or(1, |runs| runs.parse().expect(RUNS));
    let mut random = Random::new(17);
    for _ in 0..runs {
        let after = Duration::from_millis(random.below(1500));
        let Some(mut broken) = Broken::new("halves, a file as the source", after) else {
            return;
        };
        let half = broken.path("source-half");
        let uri = format!("file:{}", half.display());
        let refused = command(&broken.source, &["recover", &uri]).unwrap_err();
        assert!(refused.contains("for the destination"), "{refused}");
        save_half(&broken.source, &half);
        broken.source.machine.kill();
        let missing = paging(&broken.destination).missing;

        // Neither a file that is no half, nor one that is cut off, nor one that is not there, changes anything.
        let bytes = fs::read(&half).unwrap();
        fs::write(broken.path("cut-off"), &bytes[..bytes.len() / 2]).unwrap();
        fs::write(broken.path("empty"), []).unwrap();
        for name in ["cut-off", "empty", "nowhere"] {
            let other = format!("file:{}", broken.path(name).display());
            command(&broken.destination, &["recover", &other]).unwrap_err();
        }
        assert_eq!(paging(&broken.destination).missing, missing);
        assert_eq!(status(&broken.destination).machine, MachineState::Running);

        // A wait for the source gives way to the file.
        command(&broken.destination, &["recover", "tcp:127.0.0.1:0"]).unwrap();
        command(&broken.destination, &["recover", &uri]).unwrap();
        let came = broken
            .destination
            .wait_until("all memory", PATIENCE, |status| {
                let postcopy = status.postcopy.as_ref();
                Ok(postcopy.is_some_and(|it| it.phase != PostcopyPhase::Active))
            });
        let postcopy = came.unwrap().postcopy.unwrap();
        assert_eq!(postcopy.phase, PostcopyPhase::Completed, "{postcopy:?}");
        assert_eq!(postcopy.file, Some(half));
        println!("broken after {after:?}: {missing} pages came from the file");
        let guest = whole_pass(&mut broken.destination);
        assert_eq!(guest.wrong, 0, "{guest:?}");
        assert_eq!(guest.failure, None);
        let refused = command(&broken.destination, &["recover", &uri]).unwrap_err();
        assert!(refused.contains("all of the guest's memory"), "{refused}");
    }
}

#[test]
fn a_damaged_page_of_the_file_is_named_and_a_copy_that_is_whole_helps() {
    let test = "halves, a damaged file";
    let Some(mut broken) = Broken::with_destination(test, Duration::ZERO, true) else {
        return;
    };
    let (half, copy) = (broken.path("source-half"), broken.path("copy"));
    save_half(&broken.source, &half);
    fs::copy(&half, &copy).unwrap();
    let file = HalfFile::open(&target(&half)).unwrap();
    // Pages that nobody touches come by address: the last one is missing.
    let runs = file.file().content().unwrap().runs();
    let page = runs.last().unwrap().end() - 1;
    let at = file.file().places().page(page);
    drop(file);
    let bytes = File::options().write(true).open(&half).unwrap();
    bytes.write_all_at(b"not what it was", at).unwrap();

    let uri = |path: &Path| format!("file:{}", path.display());
    command(&broken.destination, &["recover", &uri(&half)]).unwrap();
    let found = broken
        .destination
        .wait_until("the damage", PATIENCE, |status| {
            let postcopy = status.postcopy.as_ref();
            Ok(postcopy.is_some_and(|it| it.phase == PostcopyPhase::Paused))
        });
    let postcopy = found.unwrap().postcopy.unwrap();
    let why = postcopy.broken.unwrap();
    assert!(why.contains(&format!("{:#x}", page * PAGE_SIZE)), "{why}");
    assert_eq!(postcopy.paging.missing, 1, "all other pages have come");
    command(&broken.destination, &["recover", &uri(&copy)]).unwrap();
    let came = broken
        .destination
        .wait_until("all memory", PATIENCE, |status| {
            let postcopy = status.postcopy.as_ref();
            Ok(postcopy.is_some_and(|it| it.phase == PostcopyPhase::Completed))
        });
    came.unwrap();
    release_and_check(&mut broken.destination);
}

#[test]
fn the_file_of_another_hand_over_is_refused() {
    let test = "halves, another guest's file";
    let pair = [(); 2].map(|()| Broken::new(test, Duration::ZERO));
    let [Some(one), Some(other)] = pair else {
        return;
    };
    let (ours, theirs) = (one.path("half"), other.path("half"));
    save_half(&one.source, &ours);
    save_half(&other.source, &theirs);
    let missing = paging(&one.destination).missing;
    let uri = format!("file:{}", theirs.display());
    let refused = command(&one.destination, &["recover", &uri]).unwrap_err();
    assert!(refused.contains("different hand-overs"), "{refused}");
    // Nor its own half.
    save_half(&other.destination, &other.path("destination-half"));
    let uri = format!("file:{}", other.path("destination-half").display());
    let refused = command(&one.destination, &["recover", &uri]).unwrap_err();
    assert!(refused.contains("destination has left"), "{refused}");
    assert_eq!(paging(&one.destination).missing, missing);
}

fn target(path: &Path) -> SnapshotTarget {
    format!("file:{}", path.display()).parse().unwrap()
}

fn paging(host: &Host) -> PagingStatus {
    status(host).postcopy.unwrap().paging
}

/// How many guests are made of halves whose processes were killed; more with this variable.
const RUNS: &str = "LACUNA_RANDOM_RUNS";

#[test]
fn a_guest_is_made_whole_of_halves_whose_processes_were_killed_at_any_moment() {
    let runs: u64 = std::env::var(RUNS).map_or(2, |runs| runs.parse().expect(RUNS));
    let mut random = Random::new(15);
    for run in 0..runs {
        let after = Duration::from_millis(random.below(1500));
        let Some(mut broken) = Broken::new("halves, killed", after) else {
            return;
        };
        let halves = ["source-half", "destination-half"].map(|name| broken.path(name));
        // In either order.
        let mut sides = [
            (&mut broken.source, &halves[0]),
            (&mut broken.destination, &halves[1]),
        ];
        if run % 2 == 1 {
            sides.reverse();
        }
        for (side, half) in sides {
            save_half(side, half);
            side.machine.kill();
        }
        let made = broken.reconcile(&["source-half", "destination-half"]);
        println!("broken after {after:?}: {}", made.unwrap());
        let mut whole = restored(&broken.lab, "whole", &broken.path("whole"));
        release_and_check(&mut whole);
    }
}
