// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two devices on one memory: that of the source, which lends its memory, and that of the destination.

use host_migrator::GuestRam;
use spec::{PAGE_SIZE, PageRange};

use crate::driver::REPORTING_TOO;
use crate::rig::{MIB, Subject, eventually, guest_ram};

/// Memory in use that the guest reports as free.
const REPORTED: PageRange = match PageRange::new(4 * MIB / PAGE_SIZE, MIB / PAGE_SIZE) {
    Some(pages) => pages,
    None => panic!("it is not empty"),
};

fn fill(ram: &GuestRam) {
    let content = vec![7; REPORTED.bytes() as usize];
    ram.write(REPORTED, &content).unwrap();
}

fn has_all(ram: &GuestRam, byte: u8) -> bool {
    let mut content = vec![0; REPORTED.bytes() as usize];
    ram.read(REPORTED, &mut content).unwrap();
    content.iter().all(|found| *found == byte)
}

#[test]
fn a_waiting_device_changes_nothing_in_lent_memory_and_then_works_in_it() {
    let (lent, own) = (guest_ram(), guest_ram());
    let (Some(source), Some(destination)) = (Subject::new(&lent), Subject::new(&own)) else {
        return;
    };
    let mut driver = source.driver().with_features(REPORTING_TOO);
    driver.bring_up();
    fill(&lent);
    fill(&own);
    destination.device.set_memory(&lent).unwrap();
    source.device.stop().unwrap();
    // The guest reports memory that it then has no answer for: the destination's device finds it.
    driver.add_report(REPORTED.first() * PAGE_SIZE, REPORTED.bytes() as u32);
    let state = source.device.save().unwrap();
    destination.device.load(&state).unwrap();
    assert!(has_all(&lent, 7), "before the device runs");
    destination.device.resume();
    let driver = driver.moved_to(&destination.device);
    driver.wait_for_reports();
    assert!(has_all(&lent, 0) && has_all(&own, 7));
}

#[test]
fn a_device_that_was_stopped_discards_nothing_up_to_its_end() {
    let lent = guest_ram();
    let Some(source) = Subject::new(&lent) else {
        return;
    };
    let mut driver = source.driver().with_features(REPORTING_TOO);
    driver.bring_up();
    fill(&lent);
    source.device.stop().unwrap();
    driver.add_report(REPORTED.first() * PAGE_SIZE, REPORTED.bytes() as u32);
    source.device.save().unwrap();
    assert!(has_all(&lent, 7));
    // The VMM ends, and its back end after it.
    drop(driver);
    let Subject { device, daemon, .. } = source;
    drop(device);
    eventually("the back end to end", || {
        (!daemon.socket().exists()).then_some(())
    });
    assert!(has_all(&lent, 7));
}
