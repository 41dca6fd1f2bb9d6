// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna serve` answers the page faults of another process, which does what Firecracker does when it restores a guest
//! (`stand-in.c`): it has a real userfaultfd.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use host_migrator::PAGE_SIZE;
use serde_json::Value;

use spec_testing::eventually;

use crate::lab::{lacuna, program};

const LOW: u64 = 3 << 20;
const HIGH: u64 = 1 << 20;
/// What the stand-in returns where it may not have a userfaultfd.
const NO_USERFAULTFD: i32 = 77;

/// A folder with a memory image, a snapshot of it, and the stand-in.
struct Rig(tempfile::TempDir);

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("there is room");
        let rig = Self(folder);
        let image = File::create(rig.path("image")).expect("there is room");
        image.set_len(LOW + HIGH).expect("there is room");
        // Two of three pages have content, and some of them are in the part that is discarded.
        for page in (0..(LOW + HIGH) / PAGE_SIZE).filter(|page| page % 3 != 0) {
            let content: Vec<u8> = (0..PAGE_SIZE).map(|at| (page + at / 8 + 1) as u8).collect();
            image
                .write_all_at(&content, page * PAGE_SIZE)
                .expect("there is room");
        }
        let [image, snapshot] = ["image", "snapshot"].map(|name| rig.path(name));
        let (low, high) = (format!("0:{LOW}"), format!("0x100000000:{HIGH}"));
        let made = lacuna(&[
            "convert",
            "--to",
            "snapshot",
            "--region",
            &low,
            "--region",
            &high,
            image.to_str().expect("UTF-8"),
            snapshot.to_str().expect("UTF-8"),
        ]);
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let source = rig.path("stand-in.c");
        fs::write(&source, include_str!("stand-in.c")).expect("there is room");
        let compiled = Command::new("cc")
            .args(["-O2", "-pthread", "-o"])
            .args([rig.path("stand-in"), source])
            .status();
        assert!(compiled.is_ok_and(|status| status.success()), "cc fails");
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn serve(&self, file: &str, flags: &[&str]) -> Server {
        let socket = self.path("socket");
        // That of a server that was killed.
        let _ = fs::remove_file(&socket);
        let mut process = Command::new(program())
            .arg("serve")
            .arg(self.path(file))
            .arg("--uffd-socket")
            .arg(self.path("socket"))
            .arg("--json")
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let told = BufReader::new(process.stdout.take().expect("a pipe"));
        eventually("the socket is there", || socket.exists().then_some(()));
        Server {
            process,
            told,
            seen: Vec::new(),
        }
    }

    fn client(&self, what: &str) -> Child {
        let sizes = [LOW, HIGH].map(|size| size.to_string());
        Command::new(self.path("stand-in"))
            .arg(self.path("socket"))
            .arg(self.path("image"))
            .args(sizes)
            .arg(what)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was compiled")
    }
}

/// A server, which is killed in the end.
struct Server {
    process: Child,
    told: BufReader<ChildStdout>,
    /// Lines that nobody has asked for yet.
    seen: Vec<Value>,
}

impl Server {
    /// What it says of the client with this number of a process, when it serves that no more.
    fn told_of(&mut self, pid: u32) -> Value {
        loop {
            let mut seen = self.seen.iter();
            if let Some(at) = seen.position(|told| told["pid"] == pid) {
                return self.seen.swap_remove(at);
            }
            let mut line = String::new();
            self.told.read_line(&mut line).expect("it goes on");
            let told = serde_json::from_str(&line).expect("a line of JSON");
            self.seen.push(told);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for a client that must have found everything right. False if this user may not handle page faults.
fn was_right(client: Child) -> bool {
    let done = client.wait_with_output().expect("it runs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.code() == Some(NO_USERFAULTFD) {
        spec_testing::skipped("this user may not use userfaultfd");
        return false;
    }
    assert!(
        done.status.success() && said.contains("1024 pages are right"),
        "{:?}: {said}",
        done.status
    );
    true
}

#[test]
fn a_vmm_that_was_not_written_here_gets_every_page_and_its_discards_stay_zero() {
    let rig = Rig::new();
    for (file, flags) in [
        ("snapshot", &[][..]),
        ("snapshot", &["--prefault", "max"]),
        ("image", &[]),
    ] {
        let mut server = rig.serve(file, flags);
        let clients = [rig.client("whole"), rig.client("whole")];
        let pids = clients.each_ref().map(Child::id);
        for client in clients {
            if !was_right(client) {
                return;
            }
        }
        for pid in pids {
            let told = server.told_of(pid);
            assert!(told.get("error").is_none(), "{told}");
            assert_eq!(told["status"]["pages"], 682, "{told}");
            assert_eq!(told["name"], "stand-in");
        }
    }
}

#[test]
fn clients_that_lie_or_die_are_named_and_ended_and_the_others_are_served() {
    let rig = Rig::new();
    let mut server = rig.serve("snapshot", &[]);
    let mut silent = rig.client("silent");
    if !was_right(rig.client("whole")) {
        silent.kill().expect("it waits");
        silent.wait().expect("it was killed");
        return;
    }
    for (lie, why) in [
        ("no-uffd", "not a userfaultfd"),
        ("no-fd", "exactly one descriptor"),
        ("outside", "region 1 does not lie in"),
        ("overlap", "two regions overlap"),
        ("no-json", "not sent an array of regions"),
    ] {
        let mut client = rig.client(lie);
        let told = server.told_of(client.id());
        let error = told["error"].as_str().unwrap_or_default();
        assert!(error.contains(why), "{lie}: {told}");
        // The connection has ended.
        client.wait().expect("it ends");
    }
    let mut dying = rig.client("dies");
    dying.wait().expect("it dies");
    let _ = server.told_of(dying.id());
    silent.kill().expect("it waits");
    silent.wait().expect("it was killed");
    let told = server.told_of(silent.id());
    let error = told["error"].as_str().unwrap_or_default();
    // On a slow machine it has been ended before.
    assert!(
        error.contains("hung up") || error.contains("within 10 seconds"),
        "{told}"
    );
    assert!(was_right(rig.client("whole")));
}

#[test]
fn a_client_that_needs_a_damaged_page_is_ended_and_the_page_is_named() {
    let rig = Rig::new();
    let image = rig.serve("image", &[]);
    if !was_right(rig.client("whole")) {
        return;
    }
    drop(image);
    damage(&rig.path("snapshot"));
    let mut server = rig.serve("snapshot", &[]);
    let mut client = rig.client("whole");
    let told = server.told_of(client.id());
    let error = told["error"].as_str().unwrap_or_default();
    assert!(error.contains("page at 0x1000"), "{told}");
    // It waits for the page for ever, as Firecracker would.
    client.kill().expect("it runs");
    client.wait().expect("it was killed");
}

/// Damages page 1 of the snapshot at `path`.
fn damage(path: &Path) {
    let target = format!("file:{}", path.display()).parse().expect("a name");
    let snapshot = host_migrator::Snapshot::open(&target).expect("it is complete");
    let at = snapshot.places().page(1) + 8;
    drop(snapshot);
    let file = File::options().write(true).open(path).expect("it is there");
    file.write_all_at(b"!", at).expect("there is room");
}
