// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare guest, migrated with compressed pages. Half of the pages that it writes shrink.

use host_migrator::MigrationReport;
use lacuna::control::{CompressionName, HintMode};

use crate::lab::{BareGuest, Lab, Migration, skipped_without_kvm, status};

fn migrate(migration: &Migration) -> MigrationReport {
    let lab = Lab::new(BareGuest {
        dirty_rate: "16M",
        ..BareGuest::default()
    });
    let mut source = lab.running("source");
    let moved = lab.move_whole(migration, &mut source, "destination");
    let shown = status(&source).migration.compression;
    assert_eq!(shown, moved.report.compression);
    moved.report
}

#[test]
fn a_guest_that_writes_arrives_whole_and_takes_fewer_bytes_than_its_pages() {
    if skipped_without_kvm("compressed pages") {
        return;
    }
    let (lz4, zstd) = (CompressionName::Lz4, CompressionName::Zstd);
    for (compression, channels, hints) in [
        (lz4, 1, HintMode::Off),
        (lz4, 2, HintMode::On),
        (lz4, 8, HintMode::Off),
        (zstd, 1, HintMode::On),
        (zstd, 2, HintMode::Off),
        (zstd, 8, HintMode::On),
    ] {
        let report = migrate(&Migration {
            compression,
            multifd_channels: Some(channels),
            hints,
            ..Migration::default()
        });
        let said = report.compression.as_ref().expect("it compresses");
        assert!(said.compression_rate > Some(1.2), "{said:?}");
        let content = report.totals.pages_sent * 4096;
        assert!(report.wire_bytes < content / 4 * 3, "{report:?}");
    }
}
