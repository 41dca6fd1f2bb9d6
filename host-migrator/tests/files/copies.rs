// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files after other programs have copied them, and files on block devices.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use host_migrator::SnapshotTarget;

use super::rig::{load, save, some_pages, target};

#[test]
fn copies_with_filled_holes_and_with_holes_for_zeros_have_the_same_guest() {
    let folder = tempfile::tempdir().unwrap();
    let [snapshot, copy] = ["snapshot", "copy"].map(|name| folder.path().join(name));
    let pages = some_pages(3);
    save(&target(&snapshot), &pages).unwrap();
    for sparse in ["always", "never"] {
        let how = format!("--sparse={sparse}");
        let copied = Command::new("cp")
            .args([how.as_ref(), snapshot.as_path(), &copy])
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "cp fails");
        let found = fs::metadata(&copy).unwrap();
        if sparse == "never" {
            assert!(found.blocks() * 512 >= found.len(), "it has no holes");
        }
        assert_eq!(load(&target(&copy)).unwrap(), pages, "{sparse}");
    }
}

/// A block device whose content is in a file, until it is dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None` if this user cannot make one.
    fn of(file: &Path) -> Option<Self> {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        let made = made.ok().filter(|made| made.status.success())?;
        let name = String::from_utf8(made.stdout).unwrap();
        Some(Self(PathBuf::from(name.trim_end())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_snapshot_on_a_block_device_is_replaced_by_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    File::create(&file).unwrap().set_len(16 << 20).unwrap();
    let Some(device) = LoopDevice::of(&file) else {
        spec_testing::skipped("this user cannot make loop devices");
        return;
    };
    for offset in [0, 1 << 20] {
        let target = SnapshotTarget {
            path: device.0.clone(),
            offset: Some(offset),
        };
        for byte in [1, 101] {
            let pages = some_pages(byte);
            save(&target, &pages).unwrap();
            assert_eq!(load(&target).unwrap(), pages);
        }
    }
    // The device ends before the snapshot does.
    let behind = SnapshotTarget {
        path: device.0.clone(),
        offset: Some((16 << 20) - 8192),
    };
    save(&behind, &some_pages(1)).unwrap_err();
}
