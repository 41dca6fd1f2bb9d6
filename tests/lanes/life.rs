// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a machine's process: it never ends a guest unnoticed, and a command that has returned is done.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use host_migrator::report::stats::MigrationState;
use lacuna::compare::{Host, memory_of};
use lacuna::control::Command;
use lacuna::machine::MachineState;
use rustix::process::{Pid, Signal, kill_process};
use spec::bare::IMAGE_GPA;
use spec::{PAGE_SIZE, PageRange};

use crate::lab::{
    BareGuest, Lab, Migration, command, end_of, end_of_migration, ends, lacuna, program,
    release_and_check, skipped_without_kvm, status, tell, until_round, whole_pass,
};

/// Slow enough that the test can act in the first round, however busy this machine is.
fn slow() -> Migration {
    Migration {
        max_bandwidth: Some(1 << 20),
        ..Default::default()
    }
}

fn small_guest() -> Lab {
    Lab::new(BareGuest {
        in_use: "16M",
        freed: "16M",
        memory: "128M",
        ..Default::default()
    })
}

/// Waits until memory is being sent.
fn in_first_round(source: &mut Host) {
    until_round(source, 1);
    assert!(!status(source).migration.status.is_over());
}

/// A source in the first round of a migration to a receiver, which holds the guest if `hold` is set.
fn in_mid_migration(lab: &Lab, hold: bool) -> (Host, Host) {
    let mut source = lab.running("source");
    let (receiver, uri) = lab.receiving("receiver", hold);
    slow().begin(&source, &uri);
    in_first_round(&mut source);
    (source, receiver)
}

/// Migrates without comparing memory.
fn migrate(source: &mut Host, uri: &str) {
    Migration::default().begin(source, uri);
    ends(source, MigrationState::Completed);
}

fn signal(host: &Host, signal: Signal) {
    let pid = Pid::from_raw(host.machine.pid() as i32).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn quit_ends_a_receiver_that_waits_and_nothing_is_left_of_it() {
    if skipped_without_kvm("quit, waiting") {
        return;
    }
    let lab = small_guest();
    let stream = lab.folder().join("stream");
    let address = format!("unix:{}", stream.display());
    for name in ["first", "second"] {
        let (mut receiver, _) = lab.receiving_at(name, &address, true);
        command(&receiver, &["quit"]).unwrap();
        // A command that has returned is done.
        assert!(!stream.exists() && !receiver.control.exists());
        assert_eq!(end_of(&mut receiver), Some(0));
    }
}

#[test]
fn quit_ends_a_receiver_in_mid_migration_and_the_guest_runs_on_at_its_source() {
    if skipped_without_kvm("quit, receiving") {
        return;
    }
    let lab = small_guest();
    let (mut source, mut receiver) = in_mid_migration(&lab, false);
    command(&receiver, &["quit"]).unwrap();
    assert_eq!(end_of(&mut receiver), Some(0));
    ends(&mut source, MigrationState::Failed);
    assert_eq!(status(&source).machine, MachineState::Running);
    assert_eq!(whole_pass(&mut source).wrong, 0);
}

#[test]
fn quit_is_refused_wherever_a_guest_would_be_lost_and_says_what_is_at_stake() {
    if skipped_without_kvm("quit, refused") {
        return;
    }
    let lab = small_guest();
    let mut source = lab.running("source");
    let refused = command(&source, &["quit"]).unwrap_err();
    assert!(refused.contains("--end-guest"), "{refused}");
    let (_receiver, uri) = lab.receiving("given-up", false);
    slow().begin(&source, &uri);
    in_first_round(&mut source);
    for job in [&["quit"][..], &["quit", "--end-guest"]] {
        let refused = command(&source, job).unwrap_err();
        assert!(refused.contains("lacuna cancel"), "{refused}");
    }
    command(&source, &["cancel"]).unwrap();
    let (mut receiver, uri) = lab.receiving("receiver", false);
    migrate(&mut source, &uri);
    command(&source, &["quit"]).unwrap();
    assert_eq!(end_of(&mut source), Some(0));
    let refused = command(&receiver, &["quit"]).unwrap_err();
    assert!(refused.contains("--end-guest"), "{refused}");
    assert_eq!(whole_pass(&mut receiver).wrong, 0);
    command(&receiver, &["quit", "--end-guest"]).unwrap();
    assert_eq!(end_of(&mut receiver), Some(0));
}

#[test]
fn a_machine_that_has_its_guest_listens_for_no_other() {
    if skipped_without_kvm("listener closed") {
        return;
    }
    let lab = small_guest();
    let mut source = lab.running("source");
    let (mut receiver, uri) = lab.receiving("receiver", true);
    migrate(&mut source, &uri);
    let address = uri.strip_prefix("tcp:").unwrap();
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // Another receiver uses the address, and the guest can migrate to it.
    release_and_check(&mut receiver);
    let (mut next, uri) = lab.receiving_at("next", &uri, false);
    migrate(&mut receiver, &uri);
    assert_eq!(whole_pass(&mut next).wrong, 0);
}

#[test]
fn a_guest_that_is_held_stays_held_until_somebody_lets_it_run() {
    if skipped_without_kvm("held") {
        return;
    }
    let lab = small_guest();
    let mut source = lab.running("source");
    let (mut held, uri) = lab.receiving("held", true);
    migrate(&mut source, &uri);
    // A cancelled migration also leaves the guest held.
    let (_nobody, uri) = lab.receiving("nobody", false);
    slow().begin(&held, &uri);
    in_first_round(&mut held);
    command(&held, &["cancel"]).unwrap();
    assert_eq!(status(&held).machine, MachineState::Held);
    let checks = status(&held).guest.unwrap().checks;
    let (mut next, uri) = lab.receiving("next", false);
    migrate(&mut held, &uri);
    let arrived = status(&next);
    assert_eq!(arrived.machine, MachineState::Held);
    assert_eq!(arrived.guest.unwrap().checks, checks, "it has run");
    release_and_check(&mut next);
    let (mut last, uri) = lab.receiving("last", false);
    migrate(&mut next, &uri);
    assert_eq!(status(&last).machine, MachineState::Running);
    assert_eq!(whole_pass(&mut last).wrong, 0);
}

#[test]
fn a_cancel_that_has_returned_has_given_the_guest_back() {
    if skipped_without_kvm("cancel, done") {
        return;
    }
    let lab = small_guest();
    let mut source = lab.running("source");
    for name in ["first", "second", "third"] {
        let (_receiver, uri) = lab.receiving(name, true);
        slow().begin(&source, &uri);
        in_first_round(&mut source);
        command(&source, &["cancel"]).unwrap();
        assert_eq!(
            status(&source).migration.status,
            MigrationState::Cancelled,
            "{name}"
        );
    }
    // The next migration can begin at once.
    let (mut receiver, uri) = lab.receiving("receiver", true);
    migrate(&mut source, &uri);
    release_and_check(&mut receiver);
}

#[test]
fn silent_clients_do_not_lock_cancel_out() {
    if skipped_without_kvm("idle clients") {
        return;
    }
    let lab = small_guest();
    let (mut source, _receiver) = in_mid_migration(&lab, true);
    let idle: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(&source.control).unwrap())
        .collect();
    command(&source, &["cancel"]).unwrap();
    assert_eq!(status(&source).migration.status, MigrationState::Cancelled);
    drop(idle);
    assert_eq!(whole_pass(&mut source).wrong, 0);
}

#[test]
fn sigterm_leaves_no_socket_and_does_not_succeed_if_a_guest_is_lost() {
    if skipped_without_kvm("SIGTERM") {
        return;
    }
    let lab = small_guest();
    let stream = lab.folder().join("stream");
    let address = format!("unix:{}", stream.display());
    let (mut waiting, _) = lab.receiving_at("waiting", &address, true);
    signal(&waiting, Signal::TERM);
    assert_eq!(end_of(&mut waiting), Some(0), "it had no guest");
    assert!(!stream.exists() && !waiting.control.exists());

    let mut source = lab.running("source");
    let (mut receiver, uri) = lab.receiving_at("receiver", &address, true);
    migrate(&mut source, &uri);
    signal(&source, Signal::INT);
    assert_eq!(end_of(&mut source), Some(0), "its guest has left");
    assert!(!source.control.exists());
    signal(&receiver, Signal::TERM);
    assert_eq!(end_of(&mut receiver), Some(1), "a guest is lost");
    assert!(!stream.exists() && !receiver.control.exists());
}

#[test]
fn a_guest_that_ends_in_mid_migration_ends_it_at_once_and_says_why() {
    if skipped_without_kvm("guest ends") {
        return;
    }
    let lab = small_guest();
    let (mut source, _receiver) = in_mid_migration(&lab, false);
    // Its program is gone: it crashes with the next instruction.
    let (ram, _) = memory_of(&source).unwrap();
    let image = PageRange::new(IMAGE_GPA / PAGE_SIZE, 256).unwrap();
    ram.write(image, &vec![0xff; image.bytes() as usize])
        .unwrap();
    let ended = ends(&mut source, MigrationState::Failed);
    let why = ended.error_desc.unwrap();
    assert!(why.contains("the guest has ended"), "{why}");
    // The migration ends before all of memory is sent in vain.
    assert_eq!(ended.round, 1);
    assert_eq!(status(&source).machine, MachineState::Ended);
    let shown = lacuna(&["status", "--control", source.control.to_str().unwrap()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("it has ended: "), "{shown}");
    command(&source, &["quit"]).unwrap();
}

#[test]
fn ctrl_c_in_send_says_that_the_migration_goes_on_and_how_to_cancel_it() {
    if skipped_without_kvm("Ctrl-C in send") {
        return;
    }
    let lab = small_guest();
    let mut source = lab.running("source");
    let (_receiver, uri) = lab.receiving("receiver", false);
    let control = source.control.to_str().unwrap();
    let send = ["send", &uri, "--max-bandwidth", "1M", "--control", control];
    let send = std::process::Command::new(program())
        .args(send)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    in_first_round(&mut source);
    kill_process(Pid::from_child(&send), Signal::INT).unwrap();
    let output = send.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("goes on") && said.contains("lacuna cancel"),
        "{said}"
    );
    assert!(!output.status.success());
    command(&source, &["cancel"]).unwrap();
    assert_eq!(whole_pass(&mut source).wrong, 0);
}

#[test]
fn the_report_exists_as_soon_as_the_migration_has_ended() {
    if skipped_without_kvm("report") {
        return;
    }
    let lab = small_guest();
    let mut host = lab.running("a");
    for name in ["b", "c", "d", "e"] {
        let (mut next, uri) = lab.receiving(name, false);
        Migration::default().begin(&host, &uri);
        let mut client = host.client().unwrap();
        end_of_migration(&mut host).unwrap();
        let _: serde_json::Value = client.ask(&Command::QueryReport).unwrap();
        tell(&host, &Command::Quit(None));
        assert_eq!(whole_pass(&mut next).wrong, 0);
        host = next;
    }
}
