// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! People and programs that watch a migration.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use host_migrator::MigrationState;
use lacuna::compare::Host;
use lacuna::control::TuningArguments;
use serde_json::Value;

use crate::lab::{
    BareGuest, Lab, Migration, command, ends, program, release_and_check, skipped_without_kvm,
};

/// Follows the migration away from `host` with more `flags`.
fn follow(host: &Host, flags: &[&str]) -> Child {
    Command::new(program())
        .args(["status", "--follow", "--control"])
        .arg(&host.control)
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

fn end_of(follower: Child) -> (Output, String) {
    let output = follower.wait_with_output().expect("the command ends");
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    (output, text)
}

#[test]
fn who_follows_a_migration_hears_all_of_it_also_from_before_it_began() {
    if skipped_without_kvm("bare, status --follow") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let early = follow(&source, &["--json"]);
    let migration = Migration {
        max_bandwidth: Some(256 << 20),
        tuning: TuningArguments {
            max_guest_slowdown: Some(50),
            ..TuningArguments::default()
        },
        ..Migration::default()
    };
    let moved = lab.move_whole(&migration, &mut source, "destination");
    for follower in [early, follow(&source, &["--json"])] {
        let (output, text) = end_of(follower);
        assert!(output.status.success(), "{output:?}");
        let told: Vec<Value> = (text.lines())
            .map(|line| serde_json::from_str(line).expect("a line is an object"))
            .collect();
        let (statuses, events): (Vec<_>, Vec<_>) =
            told.into_iter().partition(|it| it["event"] == "STATUS");
        let numbers: Vec<_> = events.iter().map(|it| it["number"].as_u64()).collect();
        let all: Vec<_> = (1..=events.len() as u64).map(Some).collect();
        assert_eq!(numbers, all);
        let named = |name: &'static str| events.iter().filter(move |it| it["event"] == name);
        assert_eq!(
            named("MIGRATION_PASS").count() as u64,
            moved.report.iteration_count
        );
        let states: Vec<_> = named("MIGRATION").map(|it| &it["data"]["status"]).collect();
        assert_eq!(states.first().expect("a first state"), &"setup");
        assert_eq!(states.last().expect("a last state"), &"completed");
        let last = &statuses.last().expect("a status")["data"];
        assert_eq!(last["status"], "completed");
        let ram = |name: &str| last["ram"][name].as_u64().expect("a number");
        assert_eq!(ram("transferred"), moved.report.wire_bytes);
        let parts = ram("precopy-bytes") + ram("downtime-bytes");
        assert_eq!(ram("transferred"), parts);
        assert!(ram("downtime-bytes") > 0, "{last}");
    }
}

#[test]
fn a_follower_ends_with_the_reason_when_the_migration_does_not_complete() {
    if skipped_without_kvm("bare, status --follow of a cancelled migration") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let (_destination, uri) = lab.receiving("destination", true);
    Migration::without_end().begin(&source, &uri);
    let follower = follow(&source, &[]);
    assert_eq!(command(&source, &["cancel"]), Ok(()));
    ends(&mut source, MigrationState::Cancelled);
    let (output, text) = end_of(follower);
    assert!(!output.status.success());
    assert!(text.contains("cancelled"), "{text}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the migration ended as cancelled"), "{said}");
}

/// The answer to a scrape at `socket`.
fn scrape(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).expect("the machine listens");
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn a_prometheus_server_reads_what_a_machine_and_its_migration_do() {
    if skipped_without_kvm("bare, metrics of a machine") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let socket = lab.folder().join("metrics");
    let path = socket.to_str().expect("a path in UTF-8");
    let (mut middle, uri) = lab.receiving_with("middle", &["--metrics-socket", path]);
    let awaiting = scrape(&socket);
    assert!(
        awaiting.contains("lacuna_machine_state{state=\"incoming\"} 1"),
        "{awaiting}"
    );
    let (_, verdict) =
        (Migration::default().complete(&mut source, &mut middle, &uri)).expect("an end");
    lab.assert_right(&verdict, "middle");
    assert!(scrape(&socket).contains("lacuna_machine_state{state=\"held\"} 1"));
    release_and_check(&mut middle);
    let (mut last, uri) = lab.receiving("last", true);
    let (report, verdict) =
        (Migration::default().complete(&mut middle, &mut last, &uri)).expect("an end");
    lab.assert_right(&verdict, "last");
    let after = scrape(&socket);
    let sent = format!(
        "lacuna_migration_transferred_bytes_total {}",
        report.wire_bytes
    );
    for expected in [
        &sent,
        "lacuna_migration_state{state=\"completed\"} 1",
        "lacuna_migration_remaining_bytes",
    ] {
        assert!(after.contains(expected), "{expected}: {after}");
    }
    assert_eq!(command(&middle, &["quit"]), Ok(()));
    assert!(!socket.exists(), "no socket is left behind");
}
