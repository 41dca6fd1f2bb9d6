// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metrics of a real daemon with a guest.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rig::guest::{Daemon, MIB};
use rig::queue::Buffer;
use rig::{PATIENCE, eventually};

fn daemon() -> (Daemon, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("metrics");
    let flags = [
        "--name",
        "vm1",
        "--metrics-socket",
        socket.to_str().unwrap(),
    ];
    (Daemon::start(&flags), socket, folder)
}

fn connect(socket: &Path) -> UnixStream {
    let stream = eventually("the metrics socket", || UnixStream::connect(socket).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Header and body of the answer to `request`.
fn ask(socket: &Path, request: &[u8]) -> (String, String) {
    let mut stream = connect(socket);
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.into(), body.into())
}

fn scrape(socket: &Path) -> String {
    let (head, body) = ask(socket, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body.ends_with("# EOF\n"));
    body
}

/// The value of the device's metric `name` with `labels`.
fn value(metrics: &str, name: &str, labels: &str) -> f64 {
    let start = format!("balloon_{name}{{device=\"vm1\"{labels}}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    let found = line.unwrap_or_else(|| panic!("no {start} in\n{metrics}"));
    found.parse().unwrap()
}

#[test]
fn metrics_follow_what_guest_and_migrator_do() {
    let (daemon, socket, _folder) = daemon();
    let before = scrape(&socket);
    assert_eq!(value(&before, "front_end_connected", ""), 0.0);
    assert_eq!(value(&before, "hint_age_seconds", ",quantile=\"1\""), 0.0);

    let (mut guest, mut migrator, _) = rig::hinting(&daemon);
    guest.wait_for_change();
    guest
        .hints
        .send(&[Buffer::In(8 * MIB, 4096), Buffer::In(9 * MIB, 8192)]);
    guest.hints.send(&[Buffer::In(10 * MIB, 0)]);
    migrator.close(1);
    let after = scrape(&socket);
    for (name, expected) in [
        ("front_end_connected", 1.0),
        ("front_ends_total", 1.0),
        ("running", 1.0),
        ("memory_pages", 8192.0),
        ("epochs_total", 1.0),
        ("hints_total", 2.0),
        ("hinted_pages_total", 3.0),
        ("rejected_hints_total", 1.0),
        ("stale_hints_total", 0.0),
    ] {
        assert_eq!(value(&after, name, ""), expected, "{name}");
    }
    let age = |quantile| value(&after, "hint_age_seconds", quantile);
    assert!(0.0 < age(",quantile=\"0.5\"") && age(",quantile=\"0.5\"") <= age(",quantile=\"1\""));
    assert!(value(&after, "hint_batch_seconds", ",quantile=\"0.99\"") > 0.0);

    drop(guest);
    eventually("the end of the front end", || {
        (value(&scrape(&socket), "front_end_connected", "") == 0.0).then_some(())
    });
}

#[test]
fn a_client_that_sends_nothing_or_too_much_does_not_hold_up_others() {
    let (mut daemon, socket, _folder) = daemon();
    let _silent = connect(&socket);
    let (head, _) = ask(&socket, &[b'x'; 9000]);
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let mut never_reads = connect(&socket);
    never_reads
        .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        .unwrap();
    scrape(&socket);
    assert!(daemon.lives());
}
