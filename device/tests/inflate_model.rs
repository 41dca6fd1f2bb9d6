// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random inflating and deflating, compared with a list of booleans, one for each page: exactly the pages in the
//! balloon lose their memory.
//!
//! Host pages larger than 4 KiB have a model of their own, in `balloon::discard`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rig::ballooning::{Ballooning, pfn};
use rig::guest::{HIGH, LOW, MIB, USUAL};
use vm_memory::{Bytes, GuestAddress};

/// The pages that go in and out: all except those of the queues and of the page numbers.
const FIRST: u32 = (4 * MIB / 4096) as u32;
const END: u32 = ((HIGH.0 + HIGH.1) / 4096) as u32;

fn is_memory(page: u32) -> bool {
    let address = u64::from(page) * 4096;
    [LOW, HIGH]
        .iter()
        .any(|(start, bytes)| (*start..start + bytes).contains(&address))
}

/// Page numbers as drivers send them, and as no driver does: ascending and descending runs, single ones, repeated ones,
/// some in the hole between the regions, after the last region, or anywhere.
fn numbers() -> impl Strategy<Value = Vec<u32>> {
    let run = (FIRST..END + 100, 1u32..200, any::<bool>()).prop_map(|(first, count, down)| {
        let run = first..first + count;
        if down {
            run.rev().collect()
        } else {
            run.collect::<Vec<_>>()
        }
    });
    let single = prop_oneof![
        FIRST..END,
        pfn(LOW.1) - 2..pfn(LOW.1) + 2,
        pfn(HIGH.0) - 2..pfn(HIGH.0) + 2,
        END - 2..=u32::MAX,
    ]
    .prop_map(|page| vec![page]);
    proptest::collection::vec(prop_oneof![run, single], 1..5)
        .prop_map(|parts| parts.concat())
        .prop_flat_map(|pages| Just(pages).prop_shuffle())
}

struct Model {
    it: Ballooning,
    /// One entry for each page from [`FIRST`] on.
    ballooned: Vec<bool>,
    used: Vec<bool>,
}

impl Model {
    fn new() -> Self {
        let pages = (END - FIRST) as usize;
        Self {
            it: Ballooning::boot(&[], USUAL),
            ballooned: vec![false; pages],
            used: vec![false; pages],
        }
    }

    fn use_page(&mut self, page: u32) {
        let address = GuestAddress(u64::from(page) * 4096);
        self.it.guest.memory.write_obj(1u8, address).unwrap();
        self.used[(page - FIRST) as usize] = true;
    }

    /// The guest writes to all its pages that are not in the balloon.
    fn use_all(&mut self) {
        for page in (FIRST..END).filter(|page| is_memory(*page)) {
            if !self.ballooned[(page - FIRST) as usize] {
                self.use_page(page);
            }
        }
    }

    fn step(&mut self, inflate: bool, pages: &[u32]) {
        let mine = |page: &&u32| (FIRST..END).contains(*page) && is_memory(**page);
        for page in pages.iter().filter(mine) {
            let index = (page - FIRST) as usize;
            self.ballooned[index] = inflate;
            if inflate {
                self.used[index] = false;
            }
        }
        if inflate {
            self.it.inflate(pages);
        } else {
            self.it.deflate(pages);
        }
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        for page in (FIRST..END).filter(|page| is_memory(*page)) {
            let address = GuestAddress(u64::from(page) * 4096);
            let byte: u8 = self.it.guest.memory.read_obj(address).unwrap();
            let used = self.used[(page - FIRST) as usize];
            prop_assert_eq!(byte == 1, used, "page {:#x}", page);
        }
        let status = self.it.status();
        let count = self.ballooned.iter().filter(|page| **page).count() as u64;
        prop_assert_eq!(status.ballooned_pages, count);
        prop_assert_eq!((status.failed_discards, status.bad_buffers), (0, 0));
        Ok(())
    }
}

#[test]
fn exactly_the_pages_in_the_balloon_are_discarded_in_any_order() {
    let model = RefCell::new(Model::new());
    let steps = proptest::collection::vec((any::<bool>(), numbers()), 1..8);
    TestRunner::new(Config::with_cases(64))
        .run(&steps, |steps| {
            let mut model = model.borrow_mut();
            for (inflate, pages) in steps {
                model.use_all();
                model.step(inflate, &pages);
                model.check()?;
            }
            Ok(())
        })
        .unwrap();
}
