// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who may connect to the daemon's sockets, and which files it does not replace.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rig::eventually;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use spec_testing::skipped;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const SOCKETS: [&str; 4] = ["socket", "control-socket", "agent-socket", "metrics-socket"];
const CONNECT_TO: &str = "LACUNA_TEST_CONNECT_TO";
const NOBODY: u32 = 65534;

/// A daemon with all its sockets. It is ended with the test.
struct Daemon(Child);

impl Daemon {
    /// Starts the daemon in `folder` with this umask.
    fn start(folder: &Path, umask: &str, flags: &[String]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", BINARY]);
        for name in SOCKETS {
            let option = if name == "socket" {
                "socket-path"
            } else {
                name
            };
            command.arg(format!("--{option}")).arg(folder.join(name));
        }
        command.args(["--agent-transport", "console"]);
        let daemon = Self(command.args(flags).stdin(Stdio::null()).spawn().unwrap());
        for name in SOCKETS {
            eventually(name, || UnixStream::connect(folder.join(name)).ok());
        }
        daemon
    }

    fn end(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `--NAME-mode MODE` of each socket.
fn modes(mode: &str) -> Vec<String> {
    let flag = |name| [format!("--{name}-mode"), mode.to_owned()];
    SOCKETS.into_iter().flat_map(flag).collect()
}

#[test]
fn every_socket_has_the_mode_that_was_asked_for_under_any_umask() {
    for umask in ["0", "022", "077"] {
        for (flags, expected) in [
            (vec![], 0o600),
            (modes("660"), 0o660),
            (modes("640"), 0o640),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut daemon = Daemon::start(folder.path(), umask, &flags);
            for name in SOCKETS {
                let mode = fs::metadata(folder.path().join(name)).unwrap().mode();
                assert_eq!(mode & 0o777, expected, "umask {umask}: {name}");
            }
            daemon.end();
            assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        }
    }
}

/// Not a test: connects as another user for [`only_the_group_gets_in_beside_the_owner`].
#[test]
fn process_that_connects() {
    if let Some(path) = std::env::var_os(CONNECT_TO) {
        UnixStream::connect(path).unwrap();
    }
}

#[test]
fn only_the_group_gets_in_beside_the_owner() {
    if !geteuid().is_root() {
        return skipped("only root can try to connect as another user");
    }
    let gets_in = |path: &Path| {
        let again = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_that_connects"])
            .env(CONNECT_TO, path)
            .uid(NOBODY)
            .gid(NOBODY)
            .output();
        again.unwrap().status.success()
    };
    let groups = |mode| {
        let group = |name| [format!("--{name}-group"), NOBODY.to_string()];
        let groups = SOCKETS.into_iter().flat_map(group);
        [groups.collect(), modes(mode)].concat()
    };
    for (flags, expected) in [
        (vec![], false),
        (modes("660"), false),
        (groups("660"), true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let _daemon = Daemon::start(folder.path(), "0", &flags);
        for name in SOCKETS {
            let path = folder.path().join(name);
            assert_eq!(gets_in(&path), expected, "{name} {flags:?}");
        }
    }
}

#[test]
fn a_plain_file_at_any_of_its_paths_stays_and_the_error_says_so() {
    for name in SOCKETS {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path(name), "precious").unwrap();
        let option = if name == "socket" {
            "socket-path"
        } else {
            name
        };
        let mut command = Command::new(BINARY);
        if name != "socket" {
            command.args(["--socket-path", &path("socket")]);
        }
        let output = command
            .args([format!("--{option}"), path(name)])
            .args(["--agent-transport", "console"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("plain file") && said.contains(&path(name)),
            "{said}"
        );
        assert_eq!(fs::read(path(name)).unwrap(), b"precious");
    }
}

#[test]
fn a_daemon_that_was_killed_leaves_sockets_that_the_next_one_replaces() {
    let folder = tempfile::tempdir().unwrap();
    drop(Daemon::start(folder.path(), "022", &[]));
    Daemon::start(folder.path(), "022", &[]).end();
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}
