// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon as an operator runs it: several devices, signals, the service manager, the sandbox.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rig::guest::{Daemon, Guest, USUAL};
use rig::migrator::Migrator;
use rig::{PATIENCE, eventually};
use rustix::process::{Pid, Signal, kill_process};
use spec::balloon::Command as HintCommand;
use spec_testing::skipped;
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

fn signal(process: &Child, signal: Signal) {
    kill_process(Pid::from_child(process), signal).unwrap();
}

/// Waits for the process to end.
fn end(process: &mut Child) -> ExitStatus {
    eventually("the daemon's end", || process.try_wait().unwrap())
}

fn output(arguments: &[&str]) -> Output {
    Command::new(BINARY)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// A process that is killed at the end of the test.
struct Process(Child);

impl Process {
    fn spawn(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects to a device and has it answer.
fn answers(socket: &Path) -> Frontend {
    let stream = eventually("a device's socket", || UnixStream::connect(socket).ok());
    let front_end = Frontend::from_stream(stream, 5);
    front_end.set_owner().unwrap();
    front_end.get_features().unwrap();
    front_end
}

#[test]
fn sigterm_and_sigint_remove_the_sockets_and_end_with_success() {
    for name in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        let _front_end = answers(&daemon.folder.path().join("vhost-user"));
        let _migrator = Migrator::connect(&daemon.control());
        signal(&daemon.process, name);
        let status = end(&mut daemon.process);
        assert_eq!(status.code(), Some(0), "{status}");
        let left: Vec<_> = daemon.folder.path().read_dir().unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_hinting_guest_is_told_done_before_the_daemon_ends() {
    let told = |by_migrator| {
        let mut daemon = Daemon::start(&[]);
        let mut guest = Guest::boot(&daemon, USUAL, 3);
        let mut migrator;
        if by_migrator {
            migrator = Migrator::connect(&daemon.control());
            migrator.open(1);
        } else {
            let mut person = rig::person::Person::connect(&daemon.control());
            person.hints(spec::control::Request::HintStart);
        }
        guest.wait_for_change();
        signal(&daemon.process, Signal::TERM);
        let last = guest.wait_for_last_change();
        assert!(end(&mut daemon.process).success());
        last
    };
    for by_migrator in [true, false] {
        // The device waits only for a while, and the scheduler may stop this process for longer.
        let last = eventually("a guest that reads in time", || told(by_migrator));
        assert_eq!(last.free_page_hint_cmd_id, HintCommand::DONE);
    }
}

#[test]
fn a_stalled_front_end_does_not_hold_up_the_end_of_the_daemon() {
    let mut daemon = Daemon::start(&[]);
    let stream = daemon.connect();
    let header: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    // It sends requests, never reads an answer, then stops in the middle of a message.
    stream.set_nonblocking(true).unwrap();
    while rustix::io::write(&stream, &header).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    signal(&daemon.process, Signal::TERM);
    let status = end(&mut daemon.process);
    assert!(status.success(), "{status}");
}

#[test]
fn a_daemon_that_cannot_start_says_why_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket").display().to_string();
    let _in_use = UnixListener::bind(&socket).unwrap();
    let named = |name| format!("socket-path={socket}-{name}");
    let (one, two) = (named("1,name=x"), named("2,name=x"));
    for (arguments, code, why) in [
        (&["--socket-path", &socket][..], 1, "cannot listen"),
        (&["--socket-path", "no/such/folder/s"], 1, "cannot listen"),
        (&["--fd", "99"], 1, "descriptor 99"),
        (&[], 1, "--socket-path"),
        (&["--device", &one, "--device", &two], 1, "'x'"),
        (&["--device", "no-such=1"], 2, "--no-such"),
        (&["--device", "fd=3", "--fd", "3"], 2, "--device"),
    ] {
        let output = output(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(why), "{arguments:?}: {text}");
    }
}

#[test]
fn capabilities_are_printed_whatever_else_is_asked_for() {
    let printed = output(&[
        "--socket-path",
        "a",
        "--fd",
        "b",
        "--print-capabilities",
        "-x",
    ]);
    assert!(printed.status.success());
    let json: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(json["type"], "balloon");
}

#[test]
fn the_description_names_the_program_or_where_it_will_be() {
    for (arguments, binary) in [
        (&["--print-description"][..], BINARY),
        (&["--print-description", "/opt/b\"alloon"], "/opt/b\"alloon"),
    ] {
        let printed = output(arguments);
        let json: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(json["type"], "balloon");
        assert_eq!(json["binary"], binary);
    }
}

#[test]
fn a_front_end_that_breaks_its_device_does_not_affect_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let line = |name: &str| {
        let (socket, control) = (path(name), path(&format!("{name}-control")));
        let (socket, control) = (socket.display(), control.display());
        format!("--device=name={name},socket-path={socket},control-socket={control}")
    };
    let mut process = Process::spawn(Command::new(BINARY).args([line("a"), line("b")]));
    let b = answers(&path("b"));
    let mut of_b = Migrator::connect(&path("b-control"));
    for _ in 0..3 {
        let mut broken = eventually("a's socket", || UnixStream::connect(path("a")).ok());
        std::io::Write::write_all(&mut broken, &[0xff; 12]).unwrap();
        // The device hangs up.
        let _ = std::io::Read::read(&mut broken, &mut [0]);
        b.get_features().unwrap();
        assert_eq!(of_b.status().epoch, 0);
    }
    answers(&path("a"));
    assert_eq!(process.0.try_wait().unwrap(), None);
    signal(&process.0, Signal::TERM);
    assert!(end(&mut process.0).success());
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn when_a_device_ends_the_others_go_on_and_the_last_one_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let line = |name: &str| format!("--device=once,socket-path={}", path(name).display());
    let mut process = Process::spawn(Command::new(BINARY).args([line("a"), line("b")]));
    let b = answers(&path("b"));
    drop(answers(&path("a")));
    eventually("the end of a", || (!path("a").exists()).then_some(()));
    b.get_features().unwrap();
    drop(b);
    assert!(end(&mut process.0).success());
}

#[test]
fn a_front_end_that_comes_again_is_served_again() {
    let mut daemon = Daemon::start(&[]);
    for _ in 0..20 {
        let (mut guest, mut migrator, _) = rig::hinting(&daemon);
        guest.wait_for_change();
        migrator.done();
    }
    assert!(daemon.lives());
}

/// Reads messages to the service manager until one contains `text`.
fn hear(manager: &UnixDatagram, text: &str) {
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    loop {
        let mut said = [0; 256];
        let length = manager.recv(&mut said).unwrap();
        if String::from_utf8_lossy(&said[..length]).contains(text) {
            return;
        }
    }
}

#[test]
fn a_service_manager_is_told_of_start_state_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let (notify, socket) = (folder.path().join("notify"), folder.path().join("socket"));
    let manager = UnixDatagram::bind(&notify).unwrap();
    let mut process = Process::spawn(
        Command::new(BINARY)
            .env("NOTIFY_SOCKET", &notify)
            .args([Path::new("--socket-path"), &socket]),
    );
    hear(&manager, "READY=1");
    assert!(
        socket.exists(),
        "READY is sent only when front ends can connect"
    );
    let front_end = answers(&socket);
    hear(&manager, "STATUS=serving");
    drop(front_end);
    hear(&manager, "STATUS=waiting");
    signal(&process.0, Signal::TERM);
    hear(&manager, "STOPPING=1");
    assert!(end(&mut process.0).success());
}

#[test]
fn sockets_of_the_service_manager_are_served_and_not_removed() {
    let activate = "/usr/bin/systemd-socket-activate";
    if !Path::new(activate).exists() {
        return skipped("this machine has no systemd-socket-activate");
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, control) = (folder.path().join("a"), folder.path().join("b"));
    let mut process = Process::spawn(
        Command::new(activate)
            .args([Path::new("-l"), &socket, Path::new("-l"), &control])
            .args(["--fdname=vhost-user:control", BINARY]),
    );
    let front_end = answers(&socket);
    let mut migrator = Migrator::connect(&control);
    assert_eq!(migrator.status().epoch, 0);
    signal(&process.0, Signal::TERM);
    assert!(end(&mut process.0).success());
    assert!(socket.exists() && control.exists());
    drop(front_end);
}

#[test]
fn a_socket_of_the_service_manager_that_nobody_asked_for_is_an_error() {
    let activate = "/usr/bin/systemd-socket-activate";
    if !Path::new(activate).exists() {
        return skipped("this machine has no systemd-socket-activate");
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a");
    let mut process = Process::spawn(
        Command::new(activate)
            .args([Path::new("-l"), &socket, Path::new("--fdname=control.vm2")])
            .args([BINARY, "--name", "vm1", "--socket-path"])
            .arg(folder.path().join("vhost-user")),
    );
    let _connection = eventually("the socket", || UnixStream::connect(&socket).ok());
    assert_eq!(end(&mut process.0).code(), Some(1));
}

/// A field of `/proc/PID/status`.
fn status_field(process: &Child, field: &str) -> String {
    let path = PathBuf::from(format!("/proc/{}/status", process.id()));
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[test]
fn the_process_is_in_its_sandbox_before_anyone_is_served() {
    let daemon = Daemon::start(&[]);
    let _front_end = answers(&daemon.folder.path().join("vhost-user"));
    assert_eq!(status_field(&daemon.process, "NoNewPrivs"), "1");
    assert_eq!(status_field(&daemon.process, "Seccomp"), "2");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.process.id())).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert!(limit("Max open files").parse::<u64>().unwrap() <= 64 + 1024);
    assert_ne!(limit("Max data size"), "unlimited");
    let off = Daemon::start(&["--sandbox", "off"]);
    let _front_end = answers(&off.folder.path().join("vhost-user"));
    assert_eq!(status_field(&off.process, "Seccomp"), "0");
}

/// The children of `process` that have not ended.
fn children(process: &Child) -> Vec<Pid> {
    let id = process.id();
    let path = format!("/proc/{id}/task/{id}/children");
    let text = std::fs::read_to_string(path).unwrap();
    let numbers = text.split_whitespace().map(|it| it.parse().unwrap());
    numbers.map(|it| Pid::from_raw(it).unwrap()).collect()
}

/// Whether the process runs. One that has ended may still have to be waited for.
fn runs(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_pid()));
    stat.is_ok_and(|it| !it.rsplit(')').next().unwrap().trim().starts_with('Z'))
}

#[test]
fn the_process_that_removes_the_sockets_outlives_signals_but_not_the_daemon() {
    for orderly in [true, false] {
        let mut daemon = Daemon::start(&[]);
        let _front_end = answers(&daemon.folder.path().join("vhost-user"));
        let [remover] = children(&daemon.process)[..] else {
            panic!(
                "the daemon does not have exactly one child: {:?}",
                children(&daemon.process)
            );
        };
        for name in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
            kill_process(remover, name).unwrap();
        }
        let open = spec_testing::open_files(remover.as_raw_pid().cast_unsigned());
        assert!(
            open <= 1,
            "the remover has more open than its socket to the daemon"
        );
        if orderly {
            signal(&daemon.process, Signal::TERM);
            assert!(end(&mut daemon.process).success());
            assert!(!runs(remover), "the remover has ended before the daemon");
            let left: Vec<_> = daemon.folder.path().read_dir().unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        } else {
            signal(&daemon.process, Signal::KILL);
            end(&mut daemon.process);
            eventually("the remover's end", || (!runs(remover)).then_some(()));
        }
    }
}

#[test]
fn a_daemon_whose_remover_was_killed_still_ends() {
    let mut daemon = Daemon::start(&[]);
    let _front_end = answers(&daemon.folder.path().join("vhost-user"));
    for remover in children(&daemon.process) {
        kill_process(remover, Signal::KILL).unwrap();
    }
    signal(&daemon.process, Signal::TERM);
    assert!(end(&mut daemon.process).success());
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut daemon = Daemon::start(&[]);
    let _front_end = answers(&daemon.folder.path().join("vhost-user"));
    // Both signals are pending before the process can act on the first.
    signal(&daemon.process, Signal::STOP);
    signal(&daemon.process, Signal::TERM);
    signal(&daemon.process, Signal::INT);
    signal(&daemon.process, Signal::CONT);
    let status = end(&mut daemon.process);
    assert!(
        status.signal().is_none() && status.code() > Some(128),
        "{status}"
    );
}
