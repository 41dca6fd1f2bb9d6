// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A save needs little memory of its own: the guest's size and 300 MiB are enough for the whole machine.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lacuna::args::GuestKind;
use lacuna::compare::ask_oracle;
use spec_testing::skipped;

use crate::files::{open, restored, save};
use crate::lab::{BareGuest, Lab, program, skipped_without_kvm, whole_pass};

/// Where memory cgroups are, in their second and their first version, and the file of their limit.
const HIERARCHIES: [(&str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

/// A memory cgroup of a test, without the processes of others.
struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    /// A new one with this limit; or why there can be none.
    fn new(bytes: u64) -> Result<Self, String> {
        let mut why = String::from("no memory cgroups are mounted");
        for (root, limit) in HIERARCHIES {
            if !Path::new(root).join("cgroup.procs").exists() {
                continue;
            }
            let name = format!("lacuna-test-{}", std::process::id());
            let group = Self(Path::new(root).join(name));
            let made = fs::create_dir(&group.0)
                .and_then(|()| fs::write(group.0.join(limit), bytes.to_string()));
            match made {
                Ok(()) => return Ok(group),
                Err(error) => why = format!("no memory cgroup can be made in {root}: {error}"),
            }
        }
        Err(why)
    }

    /// A program in `folder` that runs `program` in the cgroup.
    fn of_program(&self, program: &Path, folder: &Path) -> io::Result<PathBuf> {
        let script = folder.join("in-cgroup");
        let (procs, program) = (self.0.join("cgroup.procs"), program.display());
        let text = format!(
            "#!/bin/sh\necho $$ > {} && exec {program} \"$@\"\n",
            procs.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Processes that have just ended may still be in it; then an empty folder is left.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_save_needs_no_more_than_the_memory_of_its_guest_and_300_mib() {
    if skipped_without_kvm("files, memory of a save") {
        return;
    }
    let group = match MemoryCgroup::new((768 << 20) + (300 << 20)) {
        Ok(group) => group,
        Err(why) => return skipped(why),
    };
    let folder = tempfile::tempdir().unwrap();
    let program = group.of_program(&program(), folder.path()).unwrap();
    // All that was ever touched is saved, more than the 300 MiB.
    let guest = BareGuest {
        memory: "768M",
        in_use: "384M",
        freed: "320M",
        answer: "silent",
        ..BareGuest::busy()
    };
    let lab = Lab::of(program, guest);
    let mut source = lab.running("source");
    let inside = fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
    let pid = source.machine.pid().to_string();
    assert!(inside.lines().any(|line| line == pid), "{pid}: {inside}");
    let path = lab.folder().join("snapshot");
    save(&mut source, &path, true);
    assert!(open(&path).commit().pages > (600 << 20) / spec::PAGE_SIZE);
    // The restored guest has a machine of its own, which has room there when this one has left.
    let other = Lab::new(BareGuest {
        memory: "768M",
        ..BareGuest::busy()
    });
    let destination = restored(&other, "destination", &path);
    let verdict = ask_oracle(GuestKind::Bare, &source, &destination).unwrap();
    other.assert_right(&verdict, "destination");
    let _ = other.rule();
    crate::lab::command(&source, &["cont"]).unwrap();
    assert_eq!(whole_pass(&mut source).wrong, 0);
}
