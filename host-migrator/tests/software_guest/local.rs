// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A local hand-over between two sides of this process, and a script that is asked before each of their steps.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use host_migrator::{
    Connection, DestinationMachine, GuestRam, MachineError, MachineState, Migration,
    MigrationError, MigrationMonitor, MigrationParams, MigrationReport, Owner, OwnershipRecord,
    RamRegion, ReceiveError, ReceiveReport, ReceiveState, ReceiveStatus, SourceMachine, receive,
};
use spec::PageRange;
use spec::trace::check::{Verdict, check_records};

use super::Guest;
use super::machine::{DESCRIPTION, MachineForEngine, STATE};
use super::memory::like;

/// A step of a machine on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Describe,
    Judge,
    TakeMemory,
    StopVcpus,
    StopDevices,
    Save,
    Load,
    /// The destination waits for the hand-over.
    Ready,
    HandOver,
    Run,
}

impl Step {
    pub const ALL: [Self; 10] = [
        Self::Describe,
        Self::Judge,
        Self::TakeMemory,
        Self::StopVcpus,
        Self::StopDevices,
        Self::Save,
        Self::Load,
        Self::Ready,
        Self::HandOver,
        Self::Run,
    ];
}

/// What a script may use.
#[derive(Clone)]
pub struct Stage {
    /// The source's end of the connection, and the destination's.
    pub ends: Arc<[UnixStream; 2]>,
    pub monitor: MigrationMonitor,
}

impl Stage {
    /// The link dies.
    pub fn cut(&self) {
        for end in self.ends.iter() {
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Asked before each step; an error makes the step fail.
pub type Script = Arc<dyn Fn(Step, &Stage) -> Result<(), MachineError> + Send + Sync>;

/// Nothing happens besides the hand-over.
pub fn as_it_should_be() -> Script {
    Arc::new(|_, _| Ok(()))
}

/// The step fails.
pub fn ordered() -> Result<(), MachineError> {
    Err(MachineError {
        action: "do this step",
        reason: "the test has ordered this error".into(),
    })
}

/// A destination that maps the source's memory.
pub struct LocalDestination {
    script: Script,
    stage: Stage,
    pub memory: Option<Arc<GuestRam>>,
    /// Device and number of each file.
    pub files: Vec<(u64, u64)>,
    pub gave_back: bool,
    pub loaded: bool,
    pub runs: bool,
}

impl DestinationMachine for LocalDestination {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        assert_eq!(description, DESCRIPTION);
        (self.script)(Step::Judge, &self.stage)
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        (self.script)(Step::TakeMemory, &self.stage)?;
        let id = |region: &RamRegion| {
            let file = region.file.metadata().unwrap();
            (file.dev(), file.ino())
        };
        self.files = memory.iter().map(id).collect();
        self.memory = Some(Arc::new(GuestRam::map(memory).unwrap()));
        Ok(())
    }

    fn give_memory_back(&mut self) {
        self.memory = None;
        self.gave_back = true;
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        (self.script)(Step::Load, &self.stage)?;
        assert_eq!(state.take("vcpus")?.bytes, STATE);
        self.loaded = true;
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        (self.script)(Step::Run, &self.stage)?;
        assert!(self.loaded && !self.runs);
        self.runs = true;
        Ok(())
    }
}

/// The guest's machine, with the script before it.
struct Scripted {
    machine: MachineForEngine,
    script: Script,
    stage: Stage,
}

impl Scripted {
    fn ask(&self, step: Step) -> Result<(), MachineError> {
        (self.script)(step, &self.stage)
    }
}

impl SourceMachine for Scripted {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        self.ask(Step::Describe)?;
        self.machine.describe()
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        self.ask(Step::StopVcpus)?;
        self.machine.stop_vcpus()
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        self.ask(Step::StopDevices)?;
        self.machine.stop_devices()
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        self.ask(Step::Save)?;
        self.machine.save()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.machine.resume()
    }

    fn hand_over(&mut self) {
        let _ = self.ask(Step::HandOver);
        self.machine.hand_over();
    }
}

/// How a local hand-over ended on both sides.
pub struct Ended {
    pub sent: Result<MigrationReport, MigrationError>,
    pub received: Result<ReceiveReport, ReceiveError>,
    pub destination: LocalDestination,
    /// The destination's record of ownership.
    pub arrived: OwnershipRecord,
}

impl Ended {
    /// Who has the guest, says the source of `guest`, and the destination.
    pub fn owners(&self, guest: &Guest) -> (Owner, Owner) {
        (guest.ownership.get().owner, self.arrived.get().owner)
    }

    /// The memory that the destination has mapped.
    pub fn memory(&self) -> &Arc<GuestRam> {
        self.destination.memory.as_ref().unwrap()
    }
}

/// Hands `guest` over with its memory. The trace must satisfy the rule.
pub fn hand_over(guest: &Guest, params: MigrationParams, script: &Script) -> Ended {
    let (here, there) = UnixStream::pair().unwrap();
    let ends = Arc::new([here.try_clone().unwrap(), there.try_clone().unwrap()]);
    let patience = params.peer_timeout;
    let connection = Connection::try_from(here).unwrap();
    let migration = Migration::new(connection, params.with_local(true));
    let stage = Stage {
        ends,
        monitor: migration.monitor(),
    };
    // Only its shape is used: this memory stays as it is.
    let own = like(guest.memory.ram.as_ref());
    let before = picture(&own);
    let (far_script, far_stage) = (Arc::clone(script), stage.clone());
    let destination = thread::spawn(move || {
        let there = Connection::try_from(there).unwrap().with_patience(patience);
        let ownership = OwnershipRecord::there();
        let mut machine = LocalDestination {
            script: Arc::clone(&far_script),
            stage: far_stage.clone(),
            memory: None,
            files: Vec::new(),
            gave_back: false,
            loaded: false,
            runs: false,
        };
        let observer = &mut |status: &ReceiveStatus| {
            if status.status == ReceiveState::Ready {
                let _ = far_script(Step::Ready, &far_stage);
            }
        };
        let received = receive(there, &own, &mut machine, &ownership, observer);
        assert_eq!(
            picture(&own),
            before,
            "the destination's own memory was used"
        );
        (received, machine, ownership)
    });
    let machine = Scripted {
        machine: MachineForEngine(Arc::clone(&guest.machine)),
        script: Arc::clone(script),
        stage,
    };
    let mut source = guest.source();
    source.machine = Box::new(machine);
    let sent = migration.run(&mut source);
    let (received, destination, arrived) = destination.join().unwrap();
    let (records, dropped) = guest.trace.records();
    let verdict = check_records(records, dropped);
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
    Ended {
        sent,
        received,
        destination,
        arrived,
    }
}

/// All that can be seen of memory without changing it: a checksum, and which pages have no memory.
pub fn picture(ram: &GuestRam) -> (u32, Vec<PageRange>) {
    let holes = ram.holes().unwrap();
    let is_hole = |page: PageRange| holes.iter().any(|hole| hole.intersection(page).is_some());
    let mut sum = crc32fast::Hasher::new();
    let mut bytes = [0; spec::PAGE_SIZE as usize];
    for region in ram.regions() {
        for pfn in region.first()..region.end() {
            let page = PageRange::new(pfn, 1).unwrap();
            // A read through the mapping would give a hole memory.
            match is_hole(page) {
                true => bytes.fill(0),
                false => ram.read(page, &mut bytes).unwrap(),
            }
            sum.update(&bytes);
        }
    }
    (sum.finalize(), holes)
}
