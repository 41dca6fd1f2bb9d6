// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The nested lane: a stock Debian kernel with its own virtio_balloon driver, migrated by this program under
//! kvm_amd, inside a QEMU machine whose processor is emulated (or directly, where the processor can).

use crate::lab::lacuna;
use lacuna::compare::Record;

/// Runs a comparison of the Linux guest and returns its records; `None` if this machine cannot.
fn compare(args: &[&str]) -> Option<Vec<Record>> {
    if let Err(error) = lacuna::nested::available() {
        println!("skipped: {error}");
        return None;
    }
    let mut all = vec!["compare", "--guest", "linux", "--json"];
    all.extend(args);
    let output = lacuna(&all);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    println!("{out}");
    assert!(output.status.success(), "{err}");
    let records: Vec<Record> = out
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("a record"))
        .collect();
    assert!(!records.is_empty(), "no record: {out}\n{err}");
    Some(records)
}

#[test]
fn a_stock_linux_guest_goes_on_at_the_destination_and_no_page_is_wrong() {
    let Some(records) = compare(&[
        "--memory",
        "512M",
        "--in-use",
        "64M",
        "--freed",
        "256M",
        "--dirty-rate",
        "2M",
        "--hints",
        "off,on",
    ]) else {
        return;
    };
    for record in &records {
        assert!(record.is_exact(), "{record:?}");
        assert!(
            record.guest_checks > 0,
            "the process in the guest went on checking: {record:?}"
        );
    }
    let [off, on] = &records[..] else {
        panic!("two modes, {} records", records.len())
    };
    assert!(on.pages_hinted_by_round[0] > 0, "{on:?}");
    assert!(
        on.wire_bytes < off.wire_bytes * 3 / 4,
        "{} against {}",
        on.wire_bytes,
        off.wire_bytes
    );
}

/// How often the guest may have its memory in use just when it is asked.
const TRIES: [&str; 3] = ["1", "2", "3"];

#[test]
fn memory_freed_during_the_migration_is_hinted_in_a_later_round() {
    for seed in TRIES {
        let Some(records) = compare(&[
            "--memory",
            "512M",
            "--in-use",
            "48M",
            "--freed",
            "128M",
            "--dirty-rate",
            "4M",
            "--churn",
            "16384",
            "--hints",
            "on",
            "--max-bandwidth",
            "24M",
            "--downtime-limit",
            "100",
            "--seed",
            seed,
        ]) else {
            return;
        };
        assert!(records.iter().all(Record::is_exact), "{records:?}");
        let later = |record: &Record| record.pages_hinted_by_round.iter().skip(1).sum::<u64>();
        if records.iter().any(|record| later(record) > 0) {
            return;
        }
    }
    panic!(
        "no page was hinted after the first round in {} migrations",
        TRIES.len()
    );
}
