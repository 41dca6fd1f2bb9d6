// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that the back end discards during a migration: their content changes after they were sent.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use host_migrator::{
    Connection, DestinationMachine, DirtyLog, DirtyLogError, GuestRam, LogSource, MachineError,
    MachineState, Migration, MigrationBitmap, MigrationParams, OwnershipRecord, Source,
    SourceMachine, receive,
};
use reference_vmm::virtio::{VhostUserBalloon, VirtioError};
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{Driver, REPORTING_TOO};
use crate::rig::{MIB, Subject, guest_ram};

/// Memory that the guest has written and then gives up.
const GIVEN_UP: PageRange = match PageRange::new(4 * MIB / PAGE_SIZE, MIB / PAGE_SIZE) {
    Some(pages) => pages,
    None => panic!("it is not empty"),
};
/// Memory below this holds the driver's queues, which it may write at any time.
const QUEUES_END: u64 = MIB;

/// When the guest gives up its memory.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// At the end of this round.
    round: u32,
    /// After the back end's log was harvested, so that only the next harvest can find it.
    after_harvest: bool,
}

const MOMENTS: [Moment; 4] = [
    Moment {
        round: 1,
        after_harvest: false,
    },
    Moment {
        round: 1,
        after_harvest: true,
    },
    Moment {
        round: 2,
        after_harvest: false,
    },
    Moment {
        round: 2,
        after_harvest: true,
    },
];

/// What a guest does while it is migrated.
#[derive(Clone, Copy, Debug)]
struct Scene {
    moment: Moment,
    /// Whether the back end's log takes part.
    with_log: bool,
    /// Whether the guest writes the first page that it gave up, at the end of the second round.
    written_again: bool,
}

impl Scene {
    fn of(moment: Moment) -> Self {
        Self {
            moment,
            with_log: true,
            written_again: false,
        }
    }
}

#[test]
fn pages_reported_between_rounds_are_zero_on_both_sides() {
    for moment in MOMENTS {
        let Some(wrong) = wrong_pages(Scene::of(moment), report) else {
            return;
        };
        assert_eq!(wrong, Vec::<u64>::new(), "{moment:?}");
    }
}

#[test]
fn pages_inflated_between_rounds_are_zero_on_both_sides() {
    let inflate = |driver: &mut Driver| {
        driver.inflate((GIVEN_UP.first()..GIVEN_UP.end()).map(|pfn| pfn as u32));
    };
    for moment in MOMENTS {
        let Some(wrong) = wrong_pages(Scene::of(moment), inflate) else {
            return;
        };
        assert_eq!(wrong, Vec::<u64>::new(), "{moment:?}");
    }
}

#[test]
fn without_the_back_ends_log_discarded_pages_differ() {
    let scene = Scene {
        with_log: false,
        ..Scene::of(MOMENTS[0])
    };
    let Some(wrong) = wrong_pages(scene, report) else {
        return;
    };
    let given_up: Vec<u64> = (GIVEN_UP.first()..GIVEN_UP.end()).collect();
    assert_eq!(wrong, given_up);
}

#[test]
fn a_page_that_is_written_again_after_the_sender_took_it_for_a_hole_arrives() {
    let scene = Scene {
        written_again: true,
        ..Scene::of(MOMENTS[0])
    };
    let Some(wrong) = wrong_pages(scene, report) else {
        return;
    };
    assert_eq!(wrong, Vec::<u64>::new());
}

fn report(driver: &mut Driver) {
    driver.report(GIVEN_UP.first() * PAGE_SIZE, GIVEN_UP.bytes() as u32);
}

/// Migrates a guest that gives up memory. Returns the pages that differ between the two sides; `None` without KVM.
fn wrong_pages(scene: Scene, give_up: impl Fn(&mut Driver) + Send + 'static) -> Option<Vec<u64>> {
    let Scene {
        moment,
        with_log,
        written_again,
    } = scene;
    let (ram, destination_ram) = (guest_ram(), guest_ram());
    let source = Subject::new(&ram)?;
    let destination = Subject::new(&destination_ram)?;
    let mut driver = source.driver().with_features(REPORTING_TOO);
    driver.bring_up();
    let address = GuestAddress(GIVEN_UP.first() * PAGE_SIZE);
    let content = vec![0xa5; GIVEN_UP.bytes() as usize];
    ram.memory().write_slice(&content, address).unwrap();

    let mut logs: Vec<Box<dyn DirtyLog>> = vec![Box::new(GuestWrites { written_again })];
    if with_log {
        logs.push(source.device.dirty_log());
    }
    let place = if moment.after_harvest { logs.len() } else { 0 };
    let memory = Arc::clone(&ram);
    let act = move |harvest| {
        if harvest == moment.round {
            give_up(&mut driver);
        }
        if written_again && harvest == 2 {
            memory.memory().write_slice(&[0x5a; 8], address).unwrap();
        }
    };
    let act = AtHarvest {
        harvests: 0,
        act: Box::new(act),
    };
    logs.insert(place, Box::new(act));

    let (here, there) = UnixStream::pair().unwrap();
    let mut arriving = Arriving(Arc::clone(&destination.device));
    let into = Arc::clone(&destination_ram);
    let receiver = thread::spawn(move || {
        let connection = Connection::try_from(there).unwrap();
        receive(
            connection,
            &into,
            &mut arriving,
            &OwnershipRecord::there(),
            &mut |_| (),
        )
    });
    let machine = Box::new(Leaving(Arc::clone(&source.device)));
    let from = Source::new(machine, Arc::<GuestRam>::clone(&ram)).logs(logs);
    let params = MigrationParams::default()
        // The queues alone are too much for the downtime limit, so that there is a second round.
        .with_downtime_limit(Duration::ZERO)
        .with_max_rounds(2);
    let migration = Migration::start(from, params, Connection::try_from(here).unwrap()).unwrap();
    let (_, sent) = migration.join();
    let sent = sent.unwrap();
    receiver.join().unwrap().unwrap();
    assert!(
        sent.rounds[0].pages_sent >= GIVEN_UP.count(),
        "the pages are not sent before they are given up: {:?}",
        sent.rounds
    );
    let known_in_second_round = moment.round == 1 && !moment.after_harvest;
    if with_log && known_in_second_round && !written_again {
        let holes = ram.holes().unwrap();
        let kept = |page| {
            holes
                .iter()
                .any(|hole| hole.first() <= page && page < hole.end())
        };
        assert!(
            (GIVEN_UP.first()..GIVEN_UP.end()).all(kept),
            "the migration allocated memory that the balloon had given up"
        );
    }
    let mut still_there = vec![0; content.len()];
    ram.memory().read_slice(&mut still_there, address).unwrap();
    if written_again {
        assert_eq!(still_there[..8], [0x5a; 8]);
        still_there[..8].fill(0);
    }
    assert!(
        still_there.iter().all(|byte| *byte == 0),
        "the source has not discarded the pages"
    );
    Some(different(&ram, &destination_ram))
}

/// The pages that differ between the two memories.
fn different(source: &GuestRam, destination: &GuestRam) -> Vec<u64> {
    let page = |ram: &GuestRam, pfn: u64| {
        let mut bytes = [0; PAGE_SIZE as usize];
        ram.memory()
            .read_slice(&mut bytes, GuestAddress(pfn * PAGE_SIZE))
            .unwrap();
        bytes
    };
    let pages = source.regions().iter().flat_map(|r| r.first()..r.end());
    pages
        .filter(|pfn| page(source, *pfn) != page(destination, *pfn))
        .collect()
}

/// The driver's own writes: any page of its queues may have changed at any time.
struct GuestWrites {
    written_again: bool,
}

impl DirtyLog for GuestWrites {
    fn source(&self) -> LogSource {
        LogSource::Kvm
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        let queues = PageRange::inside(0, QUEUES_END).unwrap();
        bitmap.insert(queues);
        if self.written_again {
            bitmap.insert(PageRange::new(GIVEN_UP.first(), 1).unwrap());
        }
        Ok(queues.count())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

/// Not a real log: it does something at its place in the order of harvests.
struct AtHarvest {
    harvests: u32,
    act: Box<dyn FnMut(u32) + Send>,
}

impl DirtyLog for AtHarvest {
    fn source(&self) -> LogSource {
        LogSource::OwnWrites
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, _: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        self.harvests += 1;
        (self.act)(self.harvests);
        Ok(0)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

/// A machine with only a balloon.
struct Leaving(Arc<VhostUserBalloon>);

impl SourceMachine for Leaving {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        Ok(Vec::new())
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        self.0.stop().map_err(failed)
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        let balloon = self.0.save().map_err(failed)?;
        let mut state = MachineState::default();
        state.add("balloon", 1, postcard::to_allocvec(&balloon).unwrap())?;
        Ok(state)
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.0.resume();
        Ok(())
    }

    fn hand_over(&mut self) {}
}

/// A machine with only a balloon at the destination, which holds its guest.
struct Arriving(Arc<VhostUserBalloon>);

impl DestinationMachine for Arriving {
    fn judge(&mut self, _: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        let balloon = state.take("balloon")?.bytes;
        self.0
            .load(&postcard::from_bytes(&balloon).unwrap())
            .map_err(failed)
    }

    fn run(&mut self) -> Result<(), MachineError> {
        Ok(())
    }
}

fn failed(error: VirtioError) -> MachineError {
    MachineError {
        action: "migrate the balloon",
        reason: error.to_string(),
    }
}
