// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The page that the VMM stamps: a migration must not lose the VMM's own writes either.
#![allow(unsafe_code)]

use core::ptr::with_exposed_provenance;

use spec::bare::{HEARTBEAT_GPA, StatusWord};
use spec::stamp::{PAGE_WORDS, Stamp};

use crate::console::println;
use crate::status;

/// How many reads in a row may find a half-written page: the VMM writes while the guest reads, and may be preempted in the
/// middle.
const PATIENCE: u32 = 200;

/// The check of the page, by one vCPU.
#[derive(Debug)]
pub struct Heartbeat {
    seed: u64,
    /// The newest version seen; 0 before the first.
    version: u64,
    /// Reads in a row that found no stamp.
    torn: u32,
}

impl Heartbeat {
    /// A check of stamps with this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            version: 0,
            torn: 0,
        }
    }

    /// Reads the page once. Versions never go back.
    pub fn check(&mut self) {
        let page = read();
        let found = Stamp {
            address: HEARTBEAT_GPA,
            version: page[1],
        };
        if found.check(self.seed, &page).is_ok() {
            if found.version < self.version {
                self.wrong(found.version);
            }
            self.version = found.version;
            self.torn = 0;
        } else if self.version != 0 {
            self.torn += 1;
            if self.torn == PATIENCE {
                self.wrong(found.version);
                self.torn = 0;
            }
        }
    }

    fn wrong(&self, found: u64) {
        status::add(StatusWord::WrongHeartbeats, 1);
        println!("wrong heartbeat: version {found} after {}", self.version);
    }
}

fn read() -> [u64; PAGE_WORDS] {
    let page = with_exposed_provenance::<u64>(HEARTBEAT_GPA as usize);
    core::array::from_fn(|index| {
        // SAFETY: the ABI puts the page there, and memory is mapped one to one. The VMM may write it at any time, so
        // every word is read exactly once.
        unsafe { page.add(index).read_volatile() }
    })
}
