// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device hangs in memory that never answers, beside another in the same process. The other device, the metrics and
//! the end of the process do not wait for it. The daemon is this test program, which runs one of its tests again: the
//! memory must be held by the process that maps it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "rig/never.rs"]
mod never;
mod rig;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use clap::Parser;
use rig::eventually;
use rig::guest::{Guest, MIB, USUAL};
use rig::migrator::{Migrator, map_file};
use rig::person::Person;
use rig::queue::{Buffer, Queue};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use spec::balloon::Command as HintCommand;
use spec::control::{Refusal, Request};
use vhost_device_balloon::Args;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const FOLDER: &str = "LACUNA_TEST_FOLDER";
/// Guest memory of the device that hangs. Nobody has written the upper half.
const MEMORY: u64 = 16 * MIB;

#[test]
fn process_that_is_the_daemon() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    if let Err(error) = never::hold(&folder) {
        println!("no userfaultfd: {error}");
        std::process::exit(77);
    }
    let device = |name: &str| {
        let (socket, control) = (folder.join(name), folder.join(format!("{name}-control")));
        let (socket, control) = (socket.display(), control.display());
        format!("--device=name={name},socket-path={socket},control-socket={control}")
    };
    let metrics = format!("--metrics-socket={}", folder.join("metrics").display());
    let arguments = [
        "daemon",
        "--sandbox=off",
        &metrics,
        &device("a"),
        &device("b"),
    ];
    let result = Args::parse_from(arguments).run();
    println!("it ended: {result:?}");
    std::process::exit(i32::from(result.is_err()));
}

/// The daemon's process, whose device `a` will hang.
struct Daemon {
    process: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// `None` if this machine cannot hold memory.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_that_is_the_daemon", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut daemon = Self { process, folder };
        let started = eventually("the daemon", || match daemon.process.try_wait().unwrap() {
            Some(status) => Some(status.code() != Some(77)),
            None => daemon.path("metrics").exists().then_some(true),
        });
        if !started {
            spec_testing::skipped("this user may not use userfaultfd");
        }
        started.then_some(daemon)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connect(&self, name: &str) -> UnixStream {
        let path = self.path(name);
        eventually("a socket", || UnixStream::connect(&path).ok())
    }

    /// The guest of `a`, whose memory the daemon holds. The lower half, with all that the device reads, is present.
    fn guest_of_a(&self) -> Guest {
        let file = File::from(memfd_create(never::NAME, MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let range = (
            GuestAddress(0),
            MEMORY as usize,
            Some(FileOffset::new(file, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let zeros = vec![0; (MEMORY / 2) as usize];
        memory.write_slice(&zeros, GuestAddress(0)).unwrap();
        let guest = Guest::with_memory(self.connect("a"), USUAL, 3, memory);
        self.wait_for("held");
        guest
    }

    fn wait_for(&self, file: &str) {
        let path = self.path(file);
        eventually(file, || path.exists().then_some(()));
    }

    fn end(mut self) -> (Output, tempfile::TempDir) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        let status = eventually("the daemon's end", || self.process.try_wait().unwrap());
        let mut stdout = Vec::new();
        let mut out = self.process.stdout.take().unwrap();
        out.read_to_end(&mut stdout).unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let stderr = Vec::new();
        (
            Output {
                status,
                stdout,
                stderr,
            },
            folder,
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether each device answers, according to the metrics.
fn answers(metrics: &Path) -> [bool; 2] {
    let mut stream = UnixStream::connect(metrics).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    ["a", "b"].map(|device| {
        let start = format!("balloon_answers{{device=\"{device}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start} in\n{text}")) == "1"
    })
}

/// Checks that the other device of `daemon` serves its guest and its migrator, and tells the guest of the end. Returns
/// what the daemon logs.
fn the_other_is_well_to_its_end(daemon: Daemon) -> String {
    let mut guest = Guest::with_memory(
        daemon.connect("b"),
        USUAL,
        3,
        rig::guest::guest_memory(&[rig::guest::LOW, rig::guest::HIGH]),
    );
    guest.hints.start(&mut guest.front_end, 0);
    let mut migrator = Migrator::connect(&daemon.path("b-control"));
    let id = migrator.open(1);
    guest.wait_for_change();
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(8 * MIB, MIB as u32)]);
    assert_eq!(migrator.close(1).pages, 256);
    migrator.open(2);
    let reader = thread::spawn(move || {
        // Several changes may arrive as one. The last one counts.
        let mut last = None;
        while let Some(config) = guest.wait_for_last_change() {
            last = Some(config.free_page_hint_cmd_id);
            if last == Some(HintCommand::DONE) {
                break;
            }
        }
        last
    });
    let (output, folder) = daemon.end();
    assert_eq!(reader.join().unwrap(), Some(HintCommand::DONE));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let left: Vec<_> = ["a", "a-control", "b", "b-control", "metrics"]
        .into_iter()
        .filter(|name| folder.path().join(name).exists())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_worker_that_hangs_in_a_buffer_holds_up_neither_metrics_nor_others_nor_the_end() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let metrics = daemon.path("metrics");
    let mut guest = daemon.guest_of_a();
    let mut inflate = guest.queue(0);
    inflate.start(&mut guest.front_end, 0);
    assert_eq!(answers(&metrics), [true, true]);
    inflate.add(&[Buffer::Out(MEMORY / 2, 1024)]);
    inflate.kick();
    daemon.wait_for("touched");
    assert_eq!(answers(&metrics), [false, true]);
    // The other device's control socket answers, too.
    let mut migrator = Migrator::connect_only(&daemon.path("a-control"));
    let (file, bytes, _) = map_file(MEMORY / 4096);
    let hello = Request::Hello {
        version: spec::control::VERSION,
    };
    assert_eq!(
        migrator.ask(hello),
        spec::control::Reply::Refused(Refusal::Busy)
    );
    drop((migrator, file, bytes));
    let said = the_other_is_well_to_its_end(daemon);
    assert!(said.contains("it ended: Err(Stuck(\"a\"))"), "{said}");
    drop(guest);
}

#[test]
fn a_device_that_hangs_while_a_ring_is_set_up_holds_up_nobody_either() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut guest = daemon.guest_of_a();
    // The front end waits for the device until the process ends.
    let front_end = thread::spawn(move || {
        let ring = Queue::new(guest.memory.clone(), 0, MEMORY / 2);
        ring.start(&mut guest.front_end, 0);
    });
    daemon.wait_for("touched");
    assert_eq!(answers(&daemon.path("metrics")), [true, true]);
    let _person = Person::connect(&daemon.path("a-control"));
    let said = the_other_is_well_to_its_end(daemon);
    assert!(said.contains("it ended: Err(Stuck(\"a\"))"), "{said}");
    assert!(
        front_end.join().is_err(),
        "the front end got an answer from a device that hangs"
    );
}
