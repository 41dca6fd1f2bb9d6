// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compares our hinting with QEMU's own: the same guest on the same machine in the same run.

use serde_json::Value;

use crate::against_qemu::Peer;
use crate::lab::program;

const GUEST_BYTES: u64 = 384 << 20;

#[test]
fn a_guest_with_our_hints_takes_fewer_bytes_than_with_those_of_qemu() {
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(why) => return spec_testing::skipped(why),
    };
    println!("QEMU {}", peer.version());
    let guest = [
        "--memory",
        "384M",
        "--in-use",
        "32M",
        "--freed",
        "192M",
        "--dirty-rate",
        "1M",
        "--churn",
        "0",
        "--max-bandwidth",
        "64M",
    ];
    let records = peer.migrate(&program(), GUEST_BYTES, &guest, &[&["--hints", "on"]]);
    let records = records.expect("the job migrates the guest");
    for record in &records {
        println!("{record}");
        assert!(number(record, "guest_checks") > 0, "{record}");
        assert_eq!(number(record, "guest_wrong"), 0, "{record}");
    }
    let bytes = |migrator: &str, hints: &str| {
        let found = records
            .iter()
            .find(|record| record["migrator"] == migrator && record["hints"] == hints);
        number(found.expect("each was to migrate"), "wire_bytes")
    };
    let (theirs, ours) = (bytes("qemu", "on"), bytes("lacuna", "on"));
    // Otherwise QEMU's hints did not work, and the comparison is meaningless.
    assert!(theirs < bytes("qemu", "off"), "{records:?}");
    assert!(ours < theirs, "{ours} against {theirs}");
}

fn number(record: &Value, name: &str) -> u64 {
    let number = record[name].as_u64();
    number.unwrap_or_else(|| panic!("no number {name} in {record}"))
}
