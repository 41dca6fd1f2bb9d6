// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest whose agent lies, on /dev/kvm: it may harm only itself.
//!
//! The guest's driver is honest or silent; its agent is a thread of the test ([`liar`]) at the real device's socket.

mod liar;

use std::fs;
use std::path::{Path, PathBuf};

use host_migrator::report::stats::MigrationState;
use lacuna::compare::{Host, memory_of};
use lacuna::control::Command;
use spec::{PAGE_SIZE, PageRange};

use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, ends, hinted, release_and_check, skipped_without_kvm,
    tell, whole_pass,
};
use liar::{Liar, Lie};

/// How much the device's own memory may grow, in kB, whatever the agent reports: for the buffers of a frame, and the
/// allocator's reserves.
const ROOM_KB: u64 = 4096;

fn guest(answer: &'static str) -> BareGuest {
    BareGuest {
        memory: "128M",
        in_use: "24M",
        freed: "64M",
        answer,
        ..BareGuest::default()
    }
}

/// Slow enough for a liar to report anything in time.
fn slowly(bytes_a_second: u64) -> Migration {
    Migration {
        max_bandwidth: Some(bytes_a_second),
        ..Migration::default()
    }
}

/// A host whose device has an agent's socket that the machine does not use, and the socket's path.
fn with_agent_socket(lab: &Lab) -> (Host, PathBuf) {
    let path = lab.folder().join("liar");
    let text = path.to_str().expect("a folder for tests has a plain name");
    let flags = ["--agent-socket", text, "--agent-transport", "console"];
    (lab.running_with("source", &flags), path)
}

fn lied_to(host: &Host, path: &Path, lie: Lie) -> Liar {
    let (ram, _) = memory_of(host).expect("the guest's memory can be mapped");
    Liar::start(path, lie, ram)
}

/// The device's private memory. Guest memory and the hint map are shared, so they do not count.
fn private_kb(host: &Host) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", host.device.pid())).expect("the device runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    line.and_then(|line| line.split_whitespace().nth(1))
        .and_then(|number| number.parse().ok())
        .expect("the kernel says what a process takes")
}

#[test]
fn futile_lies_remove_no_page_and_take_no_memory() {
    if skipped_without_kvm("bare, futile lies of an agent") {
        return;
    }
    for lie in Lie::FUTILE {
        let lab = Lab::new(guest("silent"));
        let (mut source, path) = with_agent_socket(&lab);
        let (mut destination, uri) = lab.receiving("destination", true);
        let before = private_kb(&source);
        let liar = lied_to(&source, &path, lie);
        let (report, verdict) = slowly(100 << 20)
            .complete(&mut source, &mut destination, &uri)
            .unwrap();
        println!("{lie:?}: told {} time(s)", liar.lies());
        assert!(liar.lies() > 0, "{lie:?}");
        assert_eq!(hinted(&report), 0, "{lie:?}: {report:?}");
        assert_eq!(report.hints.lost, None, "{lie:?}");
        assert_eq!(verdict.pages_wrong, 0, "{lie:?}: {:?}", verdict.examples);
        let after = private_kb(&source);
        assert!(
            after <= before + ROOM_KB,
            "{lie:?}: {before} kB, {after} kB"
        );
        source.device.still_alive().unwrap();
        release_and_check(&mut destination);
    }
}

#[test]
fn after_a_liar_the_same_device_serves_an_honest_guest_exactly() {
    if skipped_without_kvm("bare, an honest guest after a liar") {
        return;
    }
    for lie in Lie::FUTILE
        .into_iter()
        .chain([Lie::AllFreeAtFirst, Lie::AllFree])
    {
        let lab = Lab::new(guest("prompt"));
        let (mut source, path) = with_agent_socket(&lab);
        let (lost, uri) = lab.receiving("nobody", true);
        let liar = lied_to(&source, &path, lie);
        slowly(4 << 20).begin(&source, &uri);
        source
            .wait_until("the lie", PATIENCE, |status| {
                Ok(status.migration.round > 0 && liar.lies() > 0)
            })
            .unwrap();
        tell(&source, &Command::MigrateCancel);
        ends(&mut source, MigrationState::Cancelled);
        drop((liar, lost));
        // The lie did not harm the guest at the source.
        assert_eq!(whole_pass(&mut source).wrong, 0, "{lie:?}");

        let moved = lab.move_whole(&Migration::default(), &mut source, "destination");
        assert!(hinted(&moved.report) > 0, "{lie:?}: {:?}", moved.report);
    }
}

#[test]
fn a_guest_that_calls_all_its_memory_free_keeps_what_it_writes_afterwards() {
    if skipped_without_kvm("bare, all memory is called free") {
        return;
    }
    for lie in [Lie::AllFreeAtFirst, Lie::AllFree] {
        let lab = Lab::new(BareGuest {
            dirty_rate: "16M",
            ..guest("silent")
        });
        let (mut source, path) = with_agent_socket(&lab);
        let (mut destination, uri) = lab.receiving("destination", true);
        let liar = lied_to(&source, &path, lie);
        let (report, verdict) = slowly(80 << 20)
            .complete(&mut source, &mut destination, &uri)
            .unwrap();
        source.device.still_alive().unwrap();
        let (written, own_harm) = kept_and_lost(&source, &destination, &liar.last_lie());
        println!(
            "{lie:?}: {written} pages written after they were called free are right; {own_harm} others read as \
             zero; the oracle calls {} of them wrong, {} given up",
            verdict.pages_wrong, verdict.pages_given_up
        );
        // After the last lie of an agent that lies until the end, the guest may have written nothing.
        assert!(written > 0 || lie == Lie::AllFree, "{report:?}");
        assert!(own_harm > 0, "{report:?}");
        assert_eq!(verdict.pages_wrong + verdict.pages_given_up, own_harm);
    }
}

/// Compares two stopped machines page by page. `called_free` is a copy of the guest's memory from when it was reported as
/// free. Returns how many pages were written afterwards, all of which must have arrived, and how many others read as zero
/// at the destination, because the guest reported them as free.
fn kept_and_lost(source: &Host, destination: &Host, called_free: &[u8]) -> (u64, u64) {
    let (ours, skipped) = memory_of(source).unwrap();
    let (theirs, _) = memory_of(destination).unwrap();
    assert_eq!(called_free.len() as u64, ours.pages() * PAGE_SIZE);
    let (mut written, mut lost) = (0, 0);
    let (mut here, mut there) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
    let pages = ours.regions().iter();
    let pages = pages.flat_map(|region| region.first()..region.end());
    for (pfn, before) in pages.zip(called_free.chunks(PAGE_SIZE as usize)) {
        let page = PageRange::new(pfn, 1).expect("a page of memory");
        ours.read(page, &mut here).unwrap();
        theirs.read(page, &mut there).unwrap();
        let is_written = here != before;
        written += u64::from(is_written);
        if here != there {
            assert!(
                !is_written,
                "page {pfn:#x} was written after it was reported as free"
            );
            assert!(
                skipped.contains(pfn),
                "page {pfn:#x} was never reported as free"
            );
            assert_eq!(there, [0; PAGE_SIZE as usize], "page {pfn:#x}");
            lost += 1;
        }
    }
    (written, lost)
}
