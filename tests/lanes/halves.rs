// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest is handed over before its memory, the connection breaks for good, and a guest is made of what both sides have left.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use host_migrator::Session;
use host_migrator::report::stats::MigrationState;
use lacuna::args::CutKind;
use lacuna::compare::{Host, Line};
use lacuna::machine::MachineState;
use spec::stamp::Random;

use crate::files::restored;
use crate::lab::{
    BareGuest, Lab, command, end_of, ends, hand_over, lacuna, release_and_check,
    skipped_without_postcopy, status, until_paused,
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
        if skipped_without_postcopy(test) {
            return None;
        }
        (0..).find_map(|halvings| Self::broken_after(after / (1 << halvings)))
    }

    /// `None` if all memory has come by then.
    fn broken_after(after: Duration) -> Option<Self> {
        let lab = Lab::new(BareGuest::busy());
        let mut source = lab.running("source");
        let (mut destination, uri) = lab.receiving("destination", false);
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
