// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A sandboxed process can have its own sockets' files removed, and no other file. Each attempt runs in a new process
//! of this program: a sandbox cannot be taken off, and the remover is forked, so there may be only one thread.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use spec_sockets::{Access, SocketFile};
use vhost_device_balloon::sandbox::remover::Remover;
use vhost_device_balloon::sandbox::seccomp::Group;
use vhost_device_balloon::sandbox::{self, SandboxMode};

const ATTEMPT: &str = "LACUNA_TEST_ATTEMPT";
const FOLDER: &str = "LACUNA_TEST_FOLDER";
/// The signal that ends a process after a forbidden system call.
const SIGSYS: i32 = 31;

/// Each attempt, and whether it ends the process.
const ATTEMPTS: [(&str, bool); 6] = [
    ("the process has its own socket removed", false),
    ("any thread can have it removed", false),
    ("the process itself cannot remove a file", true),
    ("the remover refuses a file that it does not know", false),
    ("another file at the same path stays", false),
    (
        "no remover is forked from a process with several threads",
        false,
    ),
];

fn main() {
    if let Ok(attempt) = std::env::var(ATTEMPT) {
        return make(&attempt, &PathBuf::from(std::env::var_os(FOLDER).unwrap()));
    }
    for (name, killed) in ATTEMPTS {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "precious").unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .env(ATTEMPT, name)
            .env(FOLDER, folder.path())
            .status()
            .unwrap();
        match killed {
            true => assert_eq!(status.signal(), Some(SIGSYS), "{name}: {status}"),
            false => assert!(status.success(), "{name}: {status}"),
        }
        let file = fs::read(folder.path().join("file")).unwrap();
        assert_eq!(file, b"precious", "{name}");
        println!("test {name} ... ok");
    }
}

/// A socket in `folder`, and the process that removes its file.
fn bound(folder: &Path) -> (UnixListener, SocketFile, Remover) {
    let (listener, file) = spec_sockets::listen(&folder.join("socket"), Access::OWNER).unwrap();
    let remover = Remover::start(vec![file.clone()], SandboxMode::Enforce).unwrap();
    (listener, file, remover)
}

fn make(attempt: &str, folder: &Path) {
    match attempt {
        "the process has its own socket removed" => {
            let (_listener, file, remover) = bound(folder);
            sandbox::enter(SandboxMode::Enforce, 1).unwrap();
            remover.remove(&file).unwrap();
            assert!(!file.path().exists());
        }
        "any thread can have it removed" => {
            let groups = [Group::Main, Group::FrontEnds, Group::Control, Group::Agent];
            let (_listener, file, remover) = bound(folder);
            let filters = sandbox::enter(SandboxMode::Enforce, 1).unwrap().unwrap();
            thread::scope(|scope| {
                for group in groups.into_iter().chain([Group::Metrics, Group::Signals]) {
                    let (filters, remover, file) = (&filters, &remover, &file);
                    scope.spawn(move || {
                        filters.confine_thread(group).unwrap();
                        remover.remove(file).unwrap();
                    });
                }
            });
        }
        "the process itself cannot remove a file" => {
            let (_listener, _file, _remover) = bound(folder);
            sandbox::enter(SandboxMode::Enforce, 1).unwrap();
            let _ = fs::remove_file(folder.join("file"));
        }
        "the remover refuses a file that it does not know" => {
            let (_listener, _file, remover) = bound(folder);
            let (_other, other) =
                spec_sockets::listen(&folder.join("other"), Access::OWNER).unwrap();
            let error = remover.remove(&other).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(other.path().exists());
        }
        "another file at the same path stays" => {
            let (listener, file, remover) = bound(folder);
            remover.remove(&file).unwrap();
            drop(listener);
            // The new file may even have the same inode.
            let (_next, next) = spec_sockets::listen(file.path(), Access::OWNER).unwrap();
            remover.remove(&file).unwrap();
            drop(remover);
            assert!(next.path().exists());
        }
        "no remover is forked from a process with several threads" => {
            let (end, wait) = mpsc::channel::<()>();
            let other = thread::spawn(move || wait.recv().is_err());
            let (_listener, file) =
                spec_sockets::listen(&folder.join("socket"), Access::OWNER).unwrap();
            Remover::start(vec![file], SandboxMode::Enforce).unwrap_err();
            drop(end);
            assert!(other.join().unwrap());
        }
        other => panic!("no such attempt: {other}"),
    }
}
