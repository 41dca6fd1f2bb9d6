// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Claims that hold under every VMM whose guest has the stock balloon driver.

use host_migrator::HintSource;
use spec::balloon::{feature, stat};
use spec::control::{HintState, Refusal, Request, RoundEnd};
use spec::hint_map::HintPhase;

use super::device::Device;
use super::guest::Guest;
use super::{MEMORY, MIB, Vmm, eventually};

/// The size to which the balloon is inflated.
const TARGET: u64 = 192 * MIB;
/// Memory left free when the rest of the guest's memory is filled.
const RESERVE: u64 = 64 * MIB;
/// A page number past the end of any guest's memory, which may have holes.
pub const MAP_PAGES: u64 = 4 << 30 >> 12;

/// Defines one test for each claim, under the VMM that `$find` finds.
macro_rules! claims_under {
    ($find:path) => {
        $crate::plugged::claims::claims_under! { $find:
            claims::a_guest_inflates_and_deflates_to_targets,
            claims::statistics_arrive_and_are_the_guests_own,
            claims::most_free_memory_is_hinted_and_comes_back_after_done,
            claims::a_migrator_gets_the_hints_of_each_epoch,
            claims::reported_memory_goes_back_to_the_host,
            claims::pages_that_are_zeroed_when_freed_are_hinted_and_discarded,
            claims::a_guest_out_of_memory_takes_its_pages_back,
            claims::the_driver_can_be_removed_and_loaded_again,
            claims::a_guest_reboots_and_finds_its_balloon_again,
            claims::a_guest_powers_off_and_another_takes_the_device,
            claims::a_vmm_is_killed_at_any_moment_and_the_next_one_is_served,
            claims::a_target_that_is_set_before_the_driver_runs_is_kept_for_it,
            claims::a_guest_outlives_its_device,
            claims::a_device_that_is_ended_gives_the_guest_its_memory_back,
            agent::the_agent_reports_every_free_page_and_the_driver_whole_blocks,
            agent::the_agents_preparation_makes_more_pages_free,
        }
    };
    ($find:path: $($of:ident::$claim:ident,)*) => {
        $(
            #[test]
            fn $claim() {
                if let Some(vmm) = $find() {
                    $crate::plugged::$of::$claim(&vmm);
                }
            }
        )*
    };
}
pub(super) use claims_under;

/// Makes the guest use nearly all its memory once and free it again, so that the host has allocated it. Returns how much
/// that was.
fn touch_all(guest: &mut Guest) -> u64 {
    let bytes = guest.memory("MemAvailable") - RESERVE;
    guest.fill("touched", bytes);
    guest.run("rm /tmp/touched");
    bytes
}

pub fn a_guest_inflates_and_deflates_to_targets(vmm: &dyn Vmm) {
    let mut device = Device::start(&[]);
    let mut guest = vmm.run(&mut device, "");
    guest.run("dd if=/dev/urandom of=/tmp/kept bs=1M count=16 2> /dev/null");
    let kept = guest.run("md5sum /tmp/kept");
    touch_all(&mut guest);
    let (total, free) = (guest.memory("MemTotal"), guest.memory("MemFree"));
    let touched = device.host_memory();

    for target in [TARGET, TARGET / 2, TARGET] {
        device.set_target(target);
        device.wait_for_size(target);
        assert_eq!(guest.memory("MemTotal"), total - target);
    }
    let left = guest.memory("MemFree");
    assert!(
        left < free - TARGET / 10 * 9,
        "{left} bytes are free of {free}"
    );
    device.wait_for_host_memory_below(touched - TARGET / 10 * 9);
    let inflated = device.host_memory();

    device.set_target(0);
    device.wait_for_size(0);
    assert_eq!(guest.memory("MemTotal"), total);
    assert_eq!(guest.run("md5sum /tmp/kept"), kept);
    touch_all(&mut guest);
    let again = device.host_memory();
    assert!(
        again > inflated + TARGET / 10 * 9,
        "{again} bytes on the host after {inflated}"
    );
    assert_eq!(guest.run("md5sum /tmp/kept"), kept);
    device.check();
}

pub fn statistics_arrive_and_are_the_guests_own(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--stats-interval", "1"]);
    let mut guest = vmm.run(&mut device, "");
    let total = guest.memory("MemTotal");
    let mut statistic = |tag| {
        eventually("statistics", || {
            let statistics = device.statistics()?;
            let found = statistics.values().iter().find(|(of, _)| *of == tag);
            found.map(|(_, value)| *value)
        })
    };
    assert_eq!(statistic(stat::TOTAL_MEMORY), total);
    let used = 128 * MIB;
    let before = statistic(stat::FREE_MEMORY);
    guest.fill("used", used);
    eventually("statistics that tell of it", || {
        (statistic(stat::FREE_MEMORY) < before - used / 10 * 9).then_some(())
    });
    guest.run("rm /tmp/used");
    eventually("statistics that tell of that, too", || {
        (statistic(stat::FREE_MEMORY) > before - used / 10).then_some(())
    });
    let available = guest.memory("MemAvailable");
    let told = statistic(stat::AVAILABLE_MEMORY);
    assert!(
        told.abs_diff(available) < 16 * MIB,
        "told {told}, has {available}"
    );
    device.check();
}

pub fn most_free_memory_is_hinted_and_comes_back_after_done(vmm: &dyn Vmm) {
    let mut device = Device::start(&[]);
    let mut guest = vmm.run(&mut device, "");
    let free = guest.memory("MemFree");
    for _ in 0..2 {
        let state = device.hint_all();
        let hinted = state.pages * spec::PAGE_SIZE;
        println!("{} MiB free, {} MiB hinted", free >> 20, hinted >> 20);
        assert!(hinted > free / 4 * 3 && hinted <= free, "{state:?}");
        let held = guest.memory("MemFree");
        assert!(
            held < free / 4,
            "{held} bytes are free while the guest holds its hints"
        );
        let done = device
            .hints(Request::HintStop)
            .expect("the round is stopped");
        assert_eq!(done.ended, RoundEnd::Stopped);
        eventually("the guest's memory", || {
            (guest.memory("MemFree") > free / 10 * 9).then_some(())
        });
    }
    let status = device.status();
    assert_eq!(status.discarded_bytes, 0, "hinted memory stays: {status:?}");
    device.check();
}

pub fn a_migrator_gets_the_hints_of_each_epoch(vmm: &dyn Vmm) {
    let mut device = Device::start(&[]);
    let mut guest = vmm.run(&mut device, "");
    guest.fill("used", 128 * MIB);
    let free = guest.memory("MemFree");
    let mut migrator = device.migrator(MAP_PAGES);
    for epoch in 1..=2 {
        migrator.open(epoch).expect("the guest is asked");
        if epoch == 2 {
            // The guest still holds its hinted pages, so only newly freed pages are hinted.
            guest.run("rm /tmp/used");
        }
        eventually("the guest's hints", || {
            (migrator.phase() == HintPhase::Finished).then_some(())
        });
        let report = migrator.close(epoch).expect("the epoch is closed");
        assert_eq!((report.stale, report.rejected), (0, 0), "{report:?}");
        if epoch == 1 {
            assert!(report.pages * spec::PAGE_SIZE > free / 2, "{report:?}");
        }
        let mut taken = 0;
        migrator.take_all(&mut |_, told| taken += u64::from(told.pages().count_ones()));
        assert_eq!(taken, report.pages);
    }
    migrator.done().expect("the guest is told");
    eventually("the guest's memory", || {
        (guest.memory("MemFree") > free / 10 * 9 + 128 * MIB).then_some(())
    });
    device.check();
}

pub fn reported_memory_goes_back_to_the_host(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--free-page-reporting"]);
    let mut guest = vmm.run(&mut device, "");
    for _ in 0..2 {
        guest.fill("used", TARGET);
        let used = device.host_memory();
        guest.run("rm /tmp/used");
        device.wait_for_host_memory_below(used - TARGET / 4 * 3);
    }
    let status = device.status();
    assert!(status.reported_pages > 0 && status.actual_pages == 0);
    device.check();
}

pub fn poisoned_pages_are_neither_hinted_nor_discarded(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--free-page-reporting"]);
    let mut guest = vmm.run(&mut device, "page_poison=1");
    let status = device.status();
    assert_ne!(
        status.negotiated & 1 << feature::PAGE_POISON,
        0,
        "{status:?}"
    );
    assert_eq!(device.hints(Request::HintStart), Err(Refusal::Poison));
    let mut migrator = device.migrator(MAP_PAGES);
    assert!(migrator.open(1).is_err());
    drop(migrator);
    guest.fill("used", TARGET);
    guest.run("rm /tmp/used");
    device.wait_until("reports", |status| {
        status.reported_pages > TARGET / spec::PAGE_SIZE / 2
    });
    assert_eq!(device.status().discarded_bytes, 0);
    // The guest would notice, because it checks the poison of each page that it allocates.
    guest.fill("used", TARGET);
    assert!(!guest.run("dmesg").contains("pagealloc:"));
    device.check();
}

pub fn pages_that_are_zeroed_when_freed_are_hinted_and_discarded(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--free-page-reporting"]);
    let mut guest = vmm.run(&mut device, "init_on_free=1");
    let status = device.status();
    assert_ne!(
        status.negotiated & 1 << feature::PAGE_POISON,
        0,
        "{status:?}"
    );
    guest.fill("used", TARGET);
    let used = device.host_memory();
    guest.run("rm /tmp/used");
    device.wait_for_host_memory_below(used - TARGET / 4 * 3);
    let HintState { pages, .. } = device.hint_all();
    assert!(pages > 0);
    device
        .hints(Request::HintStop)
        .expect("the round is stopped");
    device.check();
}

pub fn a_guest_out_of_memory_takes_its_pages_back(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--deflate-on-oom"]);
    let mut guest = vmm.run(&mut device, "");
    let target = guest.memory("MemAvailable") - RESERVE;
    device.set_target(target);
    device.wait_for_size(target);
    guest.fill("used", 2 * RESERVE);
    let status = device.status();
    assert!(status.deflated_pages > 0, "{status:?}");
    assert!(!guest.run("dmesg").contains("Killed process"));
    device.check();
}

pub fn the_driver_can_be_removed_and_loaded_again(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--free-page-reporting"]);
    let mut guest = vmm.run(&mut device, "");
    let total = guest.memory("MemTotal");
    device.set_target(TARGET);
    for _ in 0..3 {
        device.wait_for_size(TARGET);
        device.hint_all();
        guest.run("rmmod virtio_balloon");
        assert_eq!(guest.memory("MemTotal"), total);
        if vmm.tells_of_removal() {
            device.wait_until("the driver's end", |status| !status.running);
            let refused = device.hints(Request::HintStart);
            assert!(refused.is_err(), "{refused:?}");
        }
        guest.load_driver();
    }
    device.wait_for_size(TARGET);
    device.check();
}

pub fn a_guest_reboots_and_finds_its_balloon_again(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--free-page-reporting"]);
    let mut guest = vmm.run(&mut device, "");
    device.set_target(TARGET);
    device.wait_for_size(TARGET);
    device.hint_all();
    for _ in 0..2 {
        guest.say("reboot -f");
        guest.wait_for_boot();
        let total = guest.memory("MemTotal");
        assert!(total > MEMORY / 4 * 3, "{total}: its memory is its own");
        guest.load_driver();
        device.wait_for_size(TARGET);
        assert_eq!(guest.memory("MemTotal"), total - TARGET);
    }
    device.check();
}

pub fn a_guest_powers_off_and_another_takes_the_device(vmm: &dyn Vmm) {
    let mut device = Device::start(&[]);
    device.set_target(TARGET);
    for _ in 0..2 {
        let mut guest = vmm.run(&mut device, "");
        device.wait_for_size(TARGET);
        guest.say("poweroff -f");
        let status = guest.wait_for_end();
        assert!(status.success(), "{status}");
        device.wait_until("the VMM's end", |status| !status.connected);
    }
    device.check();
}

pub fn a_vmm_is_killed_at_any_moment_and_the_next_one_is_served(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--free-page-reporting", "--stats-interval", "1"]);
    // What the guest is doing when the VMM is killed.
    let moments: [fn(&mut Device, &mut Guest); 5] = [
        |device, guest| {
            guest.say("insmod /modules/virtio_balloon.ko");
            device.wait_until("the driver", |status| status.negotiated != 0);
        },
        |device, guest| {
            guest.load_driver();
            device.set_target(TARGET);
            device.wait_until("some pages", |status| status.ballooned_pages > 0);
        },
        |device, guest| {
            guest.load_driver();
            device.wait_for_size(TARGET);
            device.set_target(0);
            device.wait_until("fewer pages", |status| {
                status.ballooned_pages < TARGET / spec::PAGE_SIZE
            });
        },
        |device, guest| {
            guest.load_driver();
            device.wait_for_driver();
            device
                .hints(Request::HintStart)
                .expect("the guest is asked");
            eventually("some hints", || {
                let state = device.hints(Request::HintState).expect("a state");
                (state.pages > 0).then_some(())
            });
        },
        |device, guest| {
            guest.load_driver();
            guest.fill("used", TARGET);
            guest.say("rm /tmp/used");
            device.wait_until("some reports", |status| status.reported_pages > 0);
        },
    ];
    vmm.start(&device, "").kill();
    for at_work in moments {
        let mut guest = vmm.boot(&device, "");
        at_work(&mut device, &mut guest);
        guest.kill();
        device.wait_until("the VMM's end", |status| !status.connected);
    }
    let mut guest = vmm.run(&mut device, "");
    device.set_target(TARGET);
    device.wait_for_size(TARGET);
    assert!(device.hint_all().pages > 0);
    guest.run("true");
    device.check();
}

pub fn a_target_that_is_set_before_the_driver_runs_is_kept_for_it(vmm: &dyn Vmm) {
    let mut device = Device::start(&["--stats-interval", "1"]);
    let mut guest = vmm.start(&device, "");
    let mut sizes = (1..100).cycle();
    eventually("the guest to boot", || {
        device.set_target(sizes.next()? * MIB);
        let hints = device.hints(Request::HintStart);
        assert_eq!(hints, Err(Refusal::NotNegotiated), "there is no driver");
        guest.listens().then_some(())
    });
    guest.wait_for_boot();
    device.set_target(TARGET);
    guest.load_driver();
    device.wait_for_size(TARGET);
    device.check();
}

/// If the driver asks for something, it gets no answer, as from any dead device: see README.md.
pub fn a_guest_outlives_its_device(vmm: &dyn Vmm) {
    let mut device = Device::start(&[]);
    let mut guest = vmm.run(&mut device, "");
    device.set_target(TARGET);
    device.wait_for_size(TARGET);
    device.kill();
    guest.fill("used", 64 * MIB);
    guest.run("rm /tmp/used");
    assert!(guest.is_up());
}

/// It is worse if the device disconnects while the guest still reads the configuration, see README.md.
pub fn a_device_that_is_ended_gives_the_guest_its_memory_back(vmm: &dyn Vmm) {
    let mut device = Device::start(&[]);
    let mut guest = vmm.run(&mut device, "");
    let free = guest.memory("MemFree");
    device.hint_all();
    assert!(guest.memory("MemFree") < free / 4, "it holds its hints");
    device.stop();
    eventually("the guest's memory", || {
        (guest.memory("MemFree") > free / 10 * 9).then_some(())
    });
    assert!(guest.is_up());
}
