// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real agent on this machine's own page flags, over a character device.
#![allow(clippy::unwrap_used)]

mod rig;

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::{Agent, Got, Host};
use spec::agent::Ask;
use spec::agent::proof::{Challenge, Key};

const PAGE: usize = 4096;

fn ask(epoch: u64) -> Ask {
    Ask::Map {
        epoch,
        first: false,
    }
}

/// The page frames of `memory`, whose pages have been written.
fn frames_of(memory: &[u8]) -> Vec<u64> {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let first = memory.as_ptr() as usize / PAGE;
    let mut entries = vec![0; memory.len() / PAGE * 8];
    pagemap
        .read_exact_at(&mut entries, first as u64 * 8)
        .unwrap();
    let (entries, _) = entries.as_chunks::<8>();
    let present = entries
        .iter()
        .map(|entry| u64::from_le_bytes(*entry))
        .filter(|entry| entry >> 63 == 1);
    present.map(|entry| entry & ((1 << 55) - 1)).collect()
}

/// Pages in the free lists of all zones. `MemFree` also counts memory that the kernel has not accepted yet.
fn pages_in_free_lists() -> u64 {
    let zones = std::fs::read_to_string("/proc/zoneinfo").unwrap();
    let counts = zones
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pages free"));
    counts
        .map(|count| count.trim().parse::<u64>().unwrap())
        .sum()
}

#[test]
fn the_map_holds_what_is_free_and_nothing_that_is_in_use() {
    let Some(mut served) = rig::served(&[]) else {
        return;
    };
    let host = &mut served.host;
    let used = vec![1u8; 64 << 20];
    let used = frames_of(&used[PAGE..])
        .into_iter()
        .collect::<HashSet<u64>>();
    assert!(
        used.len() > 16000,
        "frame numbers can be read: {}",
        used.len()
    );
    host.ask(ask(7));
    let (free, totals) = host.map_of(7);
    let pages: u64 = free.iter().map(|run| run.count()).sum();
    assert_eq!(pages, totals.free);
    let wrong = free
        .iter()
        .flat_map(|run| run.first()..run.end())
        .filter(|page| used.contains(page));
    assert_eq!(wrong.count(), 0);
    // Some free pages are not in these lists, and the number changes during the test.
    let in_lists = pages_in_free_lists();
    assert!(
        pages > in_lists / 2,
        "{pages} pages reported, {in_lists} are free"
    );
    assert!(free.windows(2).all(|two| two[0].end() <= two[1].first()));
}

#[test]
fn a_new_request_ends_the_answer_to_the_last() {
    let Some(mut served) = rig::served(&[]) else {
        return;
    };
    let host = &mut served.host;
    assert!(matches!(host.next(), Got::Hello(_)));
    for epoch in 1..=20 {
        host.ask(ask(epoch));
    }
    let mut last = 0;
    loop {
        match host.next() {
            Got::Map(epoch, _) => {
                assert!(epoch >= last, "a map of epoch {epoch} after one of {last}");
                last = epoch;
            }
            Got::End(20, _) => break,
            Got::End(epoch, _) => last = epoch,
            Got::Hello(_) => panic!("an unexpected Hello"),
            Got::Proof(_) => panic!("an unexpected proof"),
        }
    }
    host.ask(Ask::Stop);
    host.ask(Ask::Hello);
    assert!(matches!(host.next(), Got::Hello(_)));
}

#[test]
fn noise_and_half_requests_are_skipped() {
    let Some(mut served) = rig::served(&[]) else {
        return;
    };
    let host = &mut served.host;
    assert!(matches!(host.next(), Got::Hello(_)));
    host.send(b"login: LAGT is no frame\r\n");
    host.send(&[b'L'; 20_000]);
    host.send(b"LAGT");
    host.ask(Ask::Hello);
    // The bytes before it may look like a frame's header until the checksum is read.
    host.ask(Ask::Hello);
    assert!(matches!(host.next(), Got::Hello(_)));
    host.ask(ask(3));
    host.map_of(3);
}

#[test]
fn a_host_that_reconnects_is_served_again() {
    let Some(mut served) = rig::served(&[]) else {
        return;
    };
    let host = &mut served.host;
    host.ask(ask(1));
    host.map_of(1);
    host.ask(ask(2));
    served.come_again();
    let host = &mut served.host;
    assert!(matches!(host.next(), Got::Hello(_)));
    host.ask(ask(3));
    host.map_of(3);
}

#[test]
fn a_port_without_a_host_is_logged_once() {
    if !rig::page_flags_can_be_read() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [link, log] = ["port", "log"].map(|name| folder.path().join(name));
    let mut host = Host::at(&link).unwrap();
    let _agent = Agent::start_with_log(&link, &[], &log);
    for _ in 0..6 {
        assert!(matches!(host.next(), Got::Hello(_)));
        // The host disconnects each time without asking anything.
        host = Host::at(&link).unwrap();
    }
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches("waiting for the host").count(), 1, "{said}");
    assert!(!said.contains("connected"), "{said}");

    // After the host was there, its absence is logged again.
    host.ask(Ask::Hello);
    for _ in 0..2 {
        assert!(matches!(host.next(), Got::Hello(_)));
    }
    for _ in 0..2 {
        host = Host::at(&link).unwrap();
        assert!(matches!(host.next(), Got::Hello(_)));
    }
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches("connected").count(), 1, "{said}");
    assert_eq!(said.matches("waiting for the host").count(), 2, "{said}");
}

/// A file with `key` that only its owner can read.
fn key_file(folder: &Path, key: &[u8]) -> PathBuf {
    let path = folder.join("key");
    fs::write(&path, key).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_host_that_asks_for_proof_gets_it_and_is_then_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = key_file(folder.path(), &[7; 32]);
    let Some(mut served) = rig::served(&["--key", path.to_str().unwrap()]) else {
        return;
    };
    let host = &mut served.host;
    assert!(matches!(host.next(), Got::Hello(_)));
    for byte in [1, 2] {
        let challenge = Challenge::new([byte; 32]);
        host.send(&challenge.to_frame());
        let Got::Proof(proof) = host.next() else {
            panic!("no proof");
        };
        assert!(Key::new(&[7; 32]).unwrap().accepts(&challenge, &proof));
    }
    host.ask(ask(3));
    host.map_of(3);
}

#[test]
fn an_agent_that_is_refused_says_what_to_do_about_its_key() {
    if !rig::page_flags_can_be_read() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [link, log] = ["port", "log"].map(|name| folder.path().join(name));
    let path = key_file(folder.path(), &[7; 32]);
    let with_key = ["--once", "--key", path.to_str().unwrap()];
    for (flags, wants) in [(&with_key[..1], "give --key"), (&with_key, "is --key the")] {
        let mut host = Host::at(&link).unwrap();
        let mut agent = Agent::start_with_log(&link, flags, &log);
        assert!(matches!(host.next(), Got::Hello(_)));
        host.send(&Challenge::new([1; 32]).to_frame());
        if flags.len() > 1 {
            assert!(matches!(host.next(), Got::Proof(_)));
            drop(host);
        }
        assert!(!agent.wait(), "the agent is not served");
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains(wants), "{said}");
    }
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = key_file(folder.path(), &[7; 32]);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna-agent"))
        .args(["--port", "/no/such/device", "--key"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("make it 600"), "{said}");
}

#[test]
fn an_agent_that_serves_once_ends_with_its_host() {
    let Some(mut served) = rig::served(&["--once"]) else {
        return;
    };
    assert!(matches!(served.host.next(), Got::Hello(_)));
    drop(served.host);
    assert!(served.agent.wait());
}

#[test]
fn the_agents_memory_does_not_grow_with_the_maps() {
    let Some(mut served) = rig::served(&[]) else {
        return;
    };
    let (host, agent) = (&mut served.host, &served.agent);
    host.ask(ask(1));
    host.map_of(1);
    let before = agent.status_kb("VmRSS");
    for epoch in 2..12 {
        host.ask(ask(epoch));
        host.map_of(epoch);
    }
    let after = agent.status_kb("VmRSS");
    assert!(after <= before + 128, "{before} kB grew to {after} kB");
}

#[test]
fn a_summary_of_free_pages_can_be_printed() {
    if !rig::page_flags_can_be_read() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna-agent"))
        .arg("--print")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains("pages are free"), "{text}");
}

#[test]
fn an_agent_that_serves_once_ends_if_its_device_is_missing() {
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna-agent"))
        .args(["--once", "--port", "/no/such/device"])
        .output()
        .unwrap();
    assert!(!output.status.success());
}
