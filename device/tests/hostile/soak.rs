// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random messages for a few seconds, most of them nearly valid. The seed is fixed.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::machine::{
    MEMORY, Machine, RING_SIZE, USER, addresses, event, memory_file, slot, table,
};
use crate::raw::*;
use crate::rig::guest::{Daemon, Guest, LOG_ALL, MIB, USUAL};
use crate::rig::migrator::Migrator;

/// Random values that a front end might send.
struct Random(spec::stamp::Random);

impl Random {
    fn new(seed: u64) -> Self {
        Self(spec::stamp::Random::new(seed))
    }

    fn next(&mut self) -> u64 {
        self.0.next()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// Often a sensible value, sometimes an extreme one.
    fn value(&mut self, sensible: u64) -> u64 {
        match self.below(12) {
            0 => 0,
            1 => u64::MAX,
            2 => self.next(),
            3 => sensible.wrapping_add(1),
            4 => sensible.wrapping_sub(1),
            _ => sensible,
        }
    }

    fn region(&mut self) -> [u64; 4] {
        let start = self.below(4) * MEMORY;
        let size = [4096, MIB, MEMORY][self.below(3) as usize];
        [
            self.value(start),
            self.value(size),
            self.value(USER + start),
            if self.one_in(8) { self.next() } else { 0 },
        ]
    }
}

/// A payload and file descriptors for `request`, possibly valid.
fn message(random: &mut Random, request: u32) -> (Vec<u8>, Vec<OwnedFd>) {
    let ring = random.below(6) as u32;
    let file = || OwnedFd::from(memory_file(MEMORY));
    match request {
        SET_FEATURES => {
            let log = if random.one_in(2) { LOG_ALL } else { 0 };
            (random.value(USUAL | log).to_le_bytes().to_vec(), vec![])
        }
        SET_PROTOCOL_FEATURES => (
            random.value(PROTOCOL_FEATURES).to_le_bytes().to_vec(),
            vec![],
        ),
        SET_MEM_TABLE => {
            let regions: Vec<_> = (0..1 + random.below(3)).map(|_| random.region()).collect();
            let fds = regions.iter().map(|_| file()).collect();
            (table(&regions), fds)
        }
        ADD_MEM_REG => (slot(random.region()), vec![file()]),
        REM_MEM_REG => (slot(random.region()), vec![]),
        SET_LOG_BASE => (longs(&[random.value(MIB), random.value(0)]), vec![file()]),
        SET_VRING_NUM => (
            words(&[ring, random.value(RING_SIZE.into()) as u32]),
            vec![],
        ),
        SET_VRING_ADDR => {
            let parts = Machine::parts(ring).map(|part| random.value(part));
            let log = random.value(MIB);
            (addresses(ring, random.below(3) as u32, parts, log), vec![])
        }
        SET_VRING_BASE | GET_VRING_BASE => (words(&[ring, random.below(3) as u32]), vec![]),
        SET_VRING_ENABLE => (words(&[ring, u32::from(!random.one_in(3))]), vec![]),
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => (longs(&[ring.into()]), vec![event()]),
        SET_BACKEND_REQ_FD => (vec![], vec![UnixStream::pair().unwrap().0.into()]),
        GET_CONFIG | SET_CONFIG => {
            let (offset, size) = (random.below(20) as u32, random.below(20) as u32);
            let header = words(&[offset, size, random.below(4) as u32]);
            ([header, vec![0x11; size as usize]].concat(), vec![])
        }
        SET_DEVICE_STATE_FD => {
            let (reader, writer) = std::io::pipe().unwrap();
            let direction = random.below(2) as u32;
            let end = if direction == 0 {
                writer.into()
            } else {
                reader.into()
            };
            (words(&[direction, 0]), vec![end])
        }
        _ => (vec![], vec![]),
    }
}

#[test]
fn random_messages_neither_end_the_daemon_nor_fill_it() {
    const COMMON: [u32; 20] = [
        SET_FEATURES,
        SET_PROTOCOL_FEATURES,
        SET_MEM_TABLE,
        SET_MEM_TABLE,
        ADD_MEM_REG,
        REM_MEM_REG,
        SET_LOG_BASE,
        SET_VRING_NUM,
        SET_VRING_ADDR,
        SET_VRING_ADDR,
        SET_VRING_BASE,
        GET_VRING_BASE,
        SET_VRING_ENABLE,
        SET_VRING_KICK,
        SET_VRING_CALL,
        SET_BACKEND_REQ_FD,
        GET_CONFIG,
        SET_CONFIG,
        SET_DEVICE_STATE_FD,
        RESET_DEVICE,
    ];
    let mut daemon = Daemon::start(&[]);
    let idle = idle(&daemon);
    let mut migrator = Migrator::connect(&daemon.control());
    let mut random = Random::new(20_261_121);
    let end = Instant::now() + Duration::from_secs(4);
    let (mut connections, mut messages) = (0u32, 0u32);
    while Instant::now() < end {
        connections += 1;
        let mut raw = Raw::negotiate(&daemon);
        for _ in 0..200 {
            let request = if random.one_in(40) {
                random.below(REQUESTS.into()) as u32
            } else {
                COMMON[random.below(COMMON.len() as u64) as usize]
            };
            let (mut payload, fds) = message(&mut random, request);
            if !payload.is_empty() && random.one_in(60) {
                let at = random.below(payload.len() as u64) as usize;
                payload.truncate(at);
            }
            if raw
                .try_send(request, 1 | NEED_REPLY, &payload, &fds)
                .is_err()
            {
                break;
            }
            messages += 1;
            // Whether some requests are answered depends on the protocol features. `GET_FEATURES` is always answered.
            raw.send(GET_FEATURES, 1, &[], &[]);
            if raw.answer().is_none() {
                break;
            }
            raw.0.set_nonblocking(true).unwrap();
            let _ = std::io::Read::read(&mut raw.0, &mut [0; 4096]);
            raw.0.set_nonblocking(false).unwrap();
        }
        migrator.status();
        assert!(
            daemon.lives(),
            "after {connections} connections, {messages} messages"
        );
    }
    assert!(
        messages > 100,
        "{messages} messages in {connections} connections"
    );
    drop(migrator);
    settles(&daemon, idle);
    Guest::boot(&daemon, USUAL, 3);
}
