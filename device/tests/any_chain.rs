// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random descriptors on every queue but the hint queue: each chain comes back, and no page loses its content unless it
//! was put into the balloon or reported.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rig::ballooning::{Ballooning, FREE};
use rig::eventually;
use rig::guest::{HIGH, LOW, MIB, REPORTING, USUAL};
use rig::queue::Queue;

/// How many descriptors are set up, from the first on. Chains may lead to others, which are empty.
const DESCRIPTORS: u16 = 12;
/// The pages that no descriptor names: those from the start of the guest to here, and the one at `KEPT`.
const NAMED: u64 = 4 * MIB;
const KEPT: u64 = FREE + 4 * MIB;

/// Address, length, flags and next.
type Descriptor = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        // In memory, below the page that must stay.
        NAMED..KEPT - 64 * 4096,
        Just(FREE),
        LOW.1 - 8192..LOW.1 + 8192,
        HIGH.0 - 8192..HIGH.0 + 8192,
        HIGH.0 + HIGH.1 - 8192..HIGH.0 + HIGH.1 + 8192,
        (u64::MAX - 8192)..=u64::MAX,
    ];
    let length = prop_oneof![0u32..16, Just(4096), 0u32..64 * 4096];
    (address, length, 0u16..8, 0u16..DESCRIPTORS + 2)
}

struct Rig {
    it: Ballooning,
    queues: Vec<Queue>,
}

impl Rig {
    fn new() -> Self {
        let mut it = Ballooning::boot(&["--free-page-reporting"], USUAL | REPORTING);
        let queues: Vec<Queue> = [2, 4].iter().map(|index| it.guest.queue(*index)).collect();
        for queue in &queues {
            queue.start(&mut it.guest.front_end, 0);
        }
        it.guest.use_page(KEPT);
        Self { it, queues }
    }

    fn send(&mut self, role: usize, descriptors: &[Descriptor], heads: &[u16]) {
        let (queue, parked) = match role {
            0 => (&mut self.it.inflate, 0),
            1 => (&mut self.it.deflate, 0),
            // The device keeps the newest statistics buffer.
            2 => (&mut self.queues[0], 1),
            _ => (&mut self.queues[1], 0),
        };
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            queue.write_descriptor(index, *address, *length, *flags, *next);
        }
        for head in heads {
            queue.add_head(*head);
        }
        queue.kick();
        eventually("every chain", || {
            (queue.used() == queue.available().wrapping_sub(parked)).then_some(())
        });
    }
}

#[test]
fn every_chain_comes_back_and_no_other_page_loses_its_content() {
    let rig = RefCell::new(Rig::new());
    let descriptors = proptest::collection::vec(descriptor(), usize::from(DESCRIPTORS));
    let heads = proptest::collection::vec(0..DESCRIPTORS, 1..8);
    TestRunner::new(Config::with_cases(512))
        .run(
            &(0usize..4, descriptors, heads),
            |(role, descriptors, heads)| {
                let mut rig = rig.borrow_mut();
                rig.send(role, &descriptors, &heads);
                prop_assert!(rig.it.guest.is_in_use(KEPT));
                Ok(())
            },
        )
        .unwrap();
    let mut rig = rig.into_inner();
    assert!(rig.it.status().bad_buffers > 0);
    assert!(rig.it.daemon.lives());
}
