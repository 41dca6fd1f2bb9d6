// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space, with all reads and writes that a guest can have its front end send.

use crate::raw::{GET_CONFIG, NEED_REPLY, Raw, SET_CONFIG, words};
use crate::rig::guest::Daemon;

/// Reads `size` bytes at `offset`. Returns the answer's header and the bytes.
fn read(raw: &mut Raw, offset: u32, size: u32) -> (Vec<u8>, Vec<u8>) {
    let mut payload = words(&[offset, size, 1]);
    payload.resize(12 + size.min(1024) as usize, 0);
    let mut answer = raw.ask(GET_CONFIG, &payload);
    let bytes = answer.split_off(12);
    (answer, bytes)
}

fn write(raw: &mut Raw, offset: u32, flags: u32, bytes: &[u8]) -> Option<u64> {
    let header = words(&[offset, bytes.len() as u32, flags]);
    raw.order(SET_CONFIG, &[&header[..], bytes].concat(), &[])
}

#[test]
fn every_part_of_the_configuration_can_be_read_and_what_follows_it_reads_as_zeros() {
    let daemon = Daemon::start(&["--once"]);
    let mut raw = Raw::negotiate(&daemon);
    assert_eq!(write(&mut raw, 4, 1, &[1, 2, 3, 4]), Some(0));
    let whole = read(&mut raw, 0, 16).1;
    assert_eq!(whole, [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
    for offset in 0..20 {
        for size in 0..20 {
            let (says, bytes) = read(&mut raw, offset, size);
            let there = whole.iter().copied().chain([0; 24]);
            let expected: Vec<u8> = there.skip(offset as usize).take(size as usize).collect();
            assert_eq!(bytes, expected, "{size} bytes at {offset}");
            assert_eq!(says, words(&[offset, bytes.len() as u32, 1]));
        }
    }
    for (offset, size) in [(u32::MAX, 4), (256, 1), (250, 30), (16, 1024)] {
        assert_eq!(read(&mut raw, offset, size).1, vec![0; size as usize]);
    }
    for offset in [0, 16, u32::MAX] {
        let none = read(&mut raw, offset, u32::MAX).1;
        assert!(none.is_empty(), "a request without room gets no bytes");
    }
}

#[test]
fn a_guest_writes_its_fields_only_and_a_migration_the_hosts_too() {
    let daemon = Daemon::start(&["--once"]);
    let mut raw = Raw::negotiate(&daemon);
    for flags in [0, 1] {
        assert_eq!(write(&mut raw, 0, flags, &[0xff; 16]), Some(0));
        let whole = read(&mut raw, 0, 16).1;
        assert_eq!(whole[..4], [0; 4], "the wanted pages");
        assert_eq!(whole[4..8], [0xff; 4], "the pages in the balloon");
        assert_eq!(whole[8..12], [0; 4], "the command id");
        assert_eq!(whole[12..], [0xff; 4], "poison");
    }
    assert_eq!(write(&mut raw, 0, 2, &[7; 16]), Some(0));
    let whole = read(&mut raw, 0, 16).1;
    assert_eq!(whole[..8], [7; 8]);
    assert_eq!(whole[8..12], [0; 4], "the command id is part of the state");
}

#[test]
fn a_write_past_the_configuration_has_no_effect_there_and_cuts_nobody_off() {
    let daemon = Daemon::start(&["--once"]);
    let mut raw = Raw::negotiate(&daemon);
    for (offset, length) in [(16, 1), (255, 1), (u32::MAX, 4), (17, 300)] {
        assert_eq!(write(&mut raw, offset, 1, &vec![1; length]), Some(0));
        let header = words(&[offset, length as u32, 1]);
        raw.send(SET_CONFIG, 1, &[header, vec![1; length]].concat(), &[]);
    }
    // A front end with a larger space of its own writes all of it back.
    assert_eq!(write(&mut raw, 0, 1, &[7; 64]), Some(0));
    assert_eq!(read(&mut raw, 4, 4).1, [7; 4]);
    assert_eq!(write(&mut raw, 12, 1, &[0; 8]), Some(0));
    assert_eq!(write(&mut raw, 4, 1, &[0; 4]), Some(0));
    // The announced length differs from the sent one, or there is no payload at all.
    raw.send(SET_CONFIG, 1, &words(&[0, 16, 1]), &[]);
    raw.send(SET_CONFIG, 1, &[], &[]);
    assert_eq!(raw.order(SET_CONFIG, &words(&[0, 8, 1, 5]), &[]), Some(1));
    raw.send(SET_CONFIG, 1 | NEED_REPLY, &[0; 3], &[]);
    raw.answer();
    assert_eq!(read(&mut raw, 0, 16).1, [0; 16]);
}
