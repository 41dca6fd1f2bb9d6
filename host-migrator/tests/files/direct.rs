// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages with and without the page cache, where the file system can do that and where it cannot.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use host_migrator::snapshot::open_storage;
use host_migrator::{DirectIo, SnapshotError, SnapshotTarget};

use super::rig::{load, save_in, some_pages, target};

/// The folder of a file system that does no direct I/O, for a copy of this test.
const FOLDER: &str = "LACUNA_TEST_RAMFS";

fn save(target: &SnapshotTarget, direct_io: DirectIo, writers: u32) -> Result<(), SnapshotError> {
    save_in(open_storage(target, direct_io)?, writers, &some_pages(7)).map(|_| ())
}

#[test]
fn a_snapshot_is_the_same_with_and_without_the_page_cache() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| target(&folder.path().join(name));
    let ways = [
        ("on", DirectIo::On),
        ("auto", DirectIo::Auto),
        ("off", DirectIo::Off),
    ];
    for (name, way) in ways {
        for writers in [1, 4] {
            match save(&at(name), way, writers) {
                Err(refused @ SnapshotError::DirectIo { .. }) => {
                    spec_testing::skipped(format_args!("{refused}"));
                    return;
                }
                saved => saved.unwrap(),
            }
            assert_eq!(load(&at(name)).unwrap(), some_pages(7));
            // Only the number of the snapshot differs, and what depends on it.
            let places = host_migrator::Snapshot::open(&at(name)).unwrap().places();
            let bytes = |of: &str| fs::read(folder.path().join(of)).unwrap();
            let parts = places.checksums_at as usize..places.state_at as usize;
            assert_eq!(bytes(name)[parts.clone()], bytes("on")[parts]);
        }
    }
}

#[test]
fn a_file_system_without_direct_io_is_named_or_used_through_the_page_cache() {
    let Some(folder) = env::var_os(FOLDER) else {
        return again_in_ramfs();
    };
    let target = target(&Path::new(&folder).join("guest"));
    let refused = save(&target, DirectIo::On, 2).unwrap_err();
    assert!(
        matches!(refused, SnapshotError::DirectIo { .. }),
        "{refused}"
    );
    let text = refused.to_string();
    assert!(
        text.contains("guest") && text.contains("O_DIRECT"),
        "{text}"
    );
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "a part is left");
    for writers in [1, 4] {
        save(&target, DirectIo::Auto, writers).unwrap();
        assert_eq!(load(&target).unwrap(), some_pages(7));
    }
}

/// Runs the test once more, in a mount namespace with a ramfs: that knows no direct I/O on any kernel.
fn again_in_ramfs() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t ramfs ramfs \"$0\" || exit 99; exec \"$@\"";
    let test = "direct::a_file_system_without_direct_io_is_named_or_used_through_the_page_cache";
    let ran = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(folder.path())
        .arg(env::current_exe().unwrap())
        .args(["--exact", test])
        .env(FOLDER, folder.path())
        .output();
    match ran {
        Ok(ran) if ran.status.success() => {
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            assert!(said.contains("1 passed"), "{said}");
        }
        Ok(ran) if ran.status.code() != Some(99) && !ran.stdout.is_empty() => {
            panic!("{}", String::from_utf8_lossy(&ran.stdout));
        }
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            spec_testing::skipped(format_args!("no ramfs can be mounted here: {said}"));
        }
        Err(error) => spec_testing::skipped(format_args!("unshare: {error}")),
    }
}
