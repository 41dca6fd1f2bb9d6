// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sandbox is effective. A filter cannot be taken off, so each attempt runs in a process of its own: this program
//! runs one of its tests again, with the attempt's name in the environment.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod raw_calls;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vhost_device_balloon::sandbox::seccomp::{Filters, Group};
use vhost_device_balloon::sandbox::{SandboxMode, landlock};

const ATTEMPT: &str = "LACUNA_TEST_ATTEMPT";
const FOLDER: &str = "LACUNA_TEST_FOLDER";
/// The signal that ends a process after a forbidden system call.
const SIGSYS: i32 = 31;

/// Makes `attempt` in a process of its own. The process succeeds if the attempt does not end it.
fn attempt(attempt: &str, folder: &Path) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "process_that_makes_the_attempt",
            "--test-threads=1",
        ])
        .env(ATTEMPT, attempt)
        .env(FOLDER, folder)
        .output()
        .unwrap()
        .status
}

fn confine(mode: SandboxMode, group: Option<Group>) {
    let filters = Filters::new(mode).unwrap();
    filters.confine_process().unwrap();
    if let Some(group) = group {
        filters.confine_thread(group).unwrap();
    }
}

/// Not a test: makes the attempt that another test of this file has asked for.
#[test]
fn process_that_makes_the_attempt() {
    let Ok(attempt) = std::env::var(ATTEMPT) else {
        return;
    };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let listener = UnixListener::bind(folder.join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    fs::write(folder.join("file"), "x").unwrap();
    match &*attempt {
        "nothing" => confine(SandboxMode::Enforce, None),
        "open" => {
            confine(SandboxMode::Enforce, None);
            let error = File::open(folder.join("file")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
        "open, logged" => {
            confine(SandboxMode::Log, None);
            File::open(folder.join("file")).unwrap();
        }
        "program" => {
            confine(SandboxMode::Enforce, None);
            let _ = Command::new("/bin/true").status();
        }
        "executable memory" => {
            confine(SandboxMode::Enforce, None);
            raw_calls::map(libc::PROT_READ | libc::PROT_EXEC);
        }
        "memory made executable" => {
            confine(SandboxMode::Enforce, None);
            raw_calls::make_executable();
        }
        "signal to another process" => {
            confine(SandboxMode::Enforce, None);
            raw_calls::signal_parent();
        }
        "signal to itself" => {
            confine(SandboxMode::Enforce, None);
            raw_calls::signal_self();
        }
        "message to an address" => {
            let (socket, _other) = UnixDatagram::pair().unwrap();
            let path = folder.join("datagrams");
            let _receiver = UnixDatagram::bind(&path).unwrap();
            confine(SandboxMode::Enforce, None);
            socket.send(b"to its peer").unwrap();
            let _ = socket.send_to(b"to another address", &path);
        }
        "removal of a file" => {
            confine(SandboxMode::Enforce, None);
            let _ = fs::remove_file(folder.join("file"));
        }
        "network" => {
            confine(SandboxMode::Enforce, None);
            let _ = UdpSocket::bind("127.0.0.1:0");
        }
        "accept by control" => {
            confine(SandboxMode::Enforce, Some(Group::Control));
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        "accept by ticker" => {
            confine(SandboxMode::Enforce, Some(Group::Ticker));
            let _ = listener.accept();
        }
        "connect by control" => {
            confine(SandboxMode::Enforce, Some(Group::Control));
            let _ = UnixStream::connect(folder.join("socket"));
        }
        "thread by metrics" => {
            confine(SandboxMode::Enforce, Some(Group::Metrics));
            let _ = std::thread::Builder::new().spawn(|| ());
        }
        "thread by front ends" => {
            confine(SandboxMode::Enforce, Some(Group::FrontEnds));
            std::thread::spawn(|| ()).join().unwrap();
        }
        "--fd under a filter like Docker's" => {
            let refused = BTreeMap::from([(libc::SYS_pidfd_getfd, vec![])]);
            let machine = std::env::consts::ARCH.try_into().unwrap();
            let error = SeccompAction::Errno(libc::EPERM.unsigned_abs());
            let filter = SeccompFilter::new(refused, SeccompAction::Allow, error, machine);
            let filter: BpfProgram = filter.unwrap().try_into().unwrap();
            seccompiler::apply_filter(&filter).unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
            let mut daemon = Command::new(env!("CARGO_BIN_EXE_vhost-device-balloon"))
                .args(["--fd", &theirs.as_raw_fd().to_string()])
                .spawn()
                .unwrap();
            drop(theirs);
            let front_end = Frontend::from_stream(ours, 5);
            front_end.set_owner().unwrap();
            front_end.get_features().unwrap();
            drop(front_end);
            assert!(daemon.wait().unwrap().success());
        }
        "files" => {
            landlock::restrict(&[]).unwrap();
            for refused in [
                fs::remove_file(folder.join("socket")),
                fs::remove_file(folder.join("file")),
                File::open(folder.join("file")).map(drop),
                File::open("/etc/passwd").map(drop),
                File::create(folder.join("new")).map(drop),
                UnixListener::bind(folder.join("new")).map(drop),
            ] {
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
            }
        }
        other => panic!("no such attempt: {other}"),
    }
}

#[test]
fn a_system_call_that_no_thread_needs_ends_the_process() {
    for (name, killed) in [
        ("nothing", false),
        ("open", false),
        ("open, logged", false),
        ("program", true),
        ("executable memory", true),
        ("memory made executable", true),
        ("signal to another process", true),
        ("signal to itself", false),
        ("message to an address", true),
        ("network", true),
        ("removal of a file", true),
        ("accept by control", false),
        ("accept by ticker", true),
        ("connect by control", true),
        ("thread by metrics", true),
        ("thread by front ends", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let status = attempt(name, folder.path());
        if killed {
            assert_eq!(status.signal(), Some(SIGSYS), "{name}: {status}");
        } else {
            assert!(status.success(), "{name}: {status}");
        }
    }
}

#[test]
fn a_connection_is_inherited_where_pidfd_getfd_is_refused_as_by_docker() {
    let folder = tempfile::tempdir().unwrap();
    let status = attempt("--fd under a filter like Docker's", folder.path());
    assert!(status.success(), "{status}");
}

#[test]
fn no_file_is_in_reach() {
    let features = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let log = Command::new("dmesg").output();
    let log = log.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    let seen = log.is_ok_and(|log| log.contains("landlock: Up and running"));
    if !features.contains("landlock") && !seen {
        return spec_testing::skipped("the kernel's log does not say that Landlock runs");
    }
    let folder = tempfile::tempdir().unwrap();
    let status = attempt("files", folder.path());
    assert!(status.success(), "{status}");
}
