// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages with and without the page cache, where the file system can do that and where it cannot.

use std::fs;

use host_migrator::snapshot::open_storage;
use host_migrator::{DirectIo, SnapshotError, SnapshotTarget};

use super::mounted;
use super::rig::{load, save_in, some_pages, target};

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
    let test = "direct::a_file_system_without_direct_io_is_named_or_used_through_the_page_cache";
    // It knows no direct I/O on any kernel.
    let Some(folder) = mounted::folder(test, "-t ramfs ramfs") else {
        return;
    };
    let target = target(&folder.join("guest"));
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
