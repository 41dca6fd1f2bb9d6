// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sockets of a machine: who may connect, and what is left alone at their paths.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use spec_testing::{eventually, skipped};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lacuna");
const NOBODY: u32 = 65534;

/// A machine that waits for its guest; ends with the test.
struct Machine(Child);

impl Machine {
    fn receive(folder: &Path, umask: &str, flags: &[&str]) -> Self {
        let (control, incoming) = (folder.join("control"), folder.join("incoming"));
        let child = Command::new("sh")
            .args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", PROGRAM])
            .args(["receive", &format!("unix:{}", incoming.display())])
            .args(["--memory", "32M", "--control", control.to_str().unwrap()])
            .args(flags)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Self(child);
        eventually("the machine's status", || status(&control).then_some(()));
        machine
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn status_command(control: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["status", "--control", control.to_str().unwrap()]);
    command
}

fn status(control: &Path) -> bool {
    status_command(control).output().unwrap().status.success()
}

fn without_kvm() -> bool {
    let missing = !lacuna::nested::kvm_usable();
    if missing {
        skipped("/dev/kvm is missing or cannot be opened on this machine");
    }
    missing
}

#[test]
fn a_machines_sockets_are_its_owners_unless_told_otherwise_under_any_umask() {
    if without_kvm() {
        return;
    }
    let group = ["--control-mode", "660", "--socket-mode", "666"];
    for umask in ["0", "022", "077"] {
        for (flags, control, incoming) in [(&[][..], 0o600, 0o600), (&group[..], 0o660, 0o666)] {
            let folder = tempfile::tempdir().unwrap();
            let _machine = Machine::receive(folder.path(), umask, flags);
            let mode = |name| fs::metadata(folder.path().join(name)).unwrap().mode() & 0o777;
            assert_eq!(mode("control"), control, "umask {umask} {flags:?}");
            assert_eq!(mode("incoming"), incoming, "umask {umask} {flags:?}");
        }
    }
}

#[test]
fn another_user_gives_a_machine_no_commands_unless_its_group_may() {
    if without_kvm() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("only root can try to connect as another user");
    }
    let nobody = NOBODY.to_string();
    let group = ["--control-mode", "660", "--control-group", &nobody];
    for (flags, answered) in [(&[][..], false), (&group[..], true)] {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let _machine = Machine::receive(folder.path(), "0", flags);
        let mut command = status_command(&folder.path().join("control"));
        let output = command.uid(NOBODY).gid(NOBODY).output().unwrap();
        assert_eq!(output.status.success(), answered, "{flags:?}: {output:?}");
    }
}

#[test]
fn receiving_over_a_plain_file_is_an_error_and_the_file_stays() {
    if without_kvm() {
        return;
    }
    for taken in ["incoming", "control"] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path(taken), "precious").unwrap();
        let output = Command::new(PROGRAM)
            .args(["receive", &format!("unix:{}", path("incoming"))])
            .args(["--memory", "32M", "--control", &path("control")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains("plain file") && said.contains(&path(taken)),
            "{said}"
        );
        assert_eq!(fs::read(path(taken)).unwrap(), b"precious");
    }
}
