// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM that has guest memory as a mapping and no memory file. It uses only the public interface.
#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use host_migrator::{
    Connection, DestinationMachine, DirtyLog, DirtyLogError, GuestMemory, Layout, LogSource,
    MachineError, MachineState, Migration, MigrationBitmap, MigrationError, MigrationParams,
    MigrationState, MigrationStatus, OwnershipRecord, PageRange, RamError, Source, SourceMachine,
    receive,
};

const PAGE_WORDS: u64 = 512;
/// Two regions of a guest's memory, and a hole between them.
const REGIONS: [(u64, u64); 2] = [(0, 900), (4096, 300)];

/// Memory of this process alone.
struct Mapping {
    layout: Layout,
    /// The words of each region.
    regions: Vec<Vec<AtomicU64>>,
}

impl Mapping {
    fn new() -> Arc<Self> {
        let regions = REGIONS.map(|(first, count)| PageRange::new(first, count).unwrap());
        let words =
            |region: &PageRange| (0..region.count() * PAGE_WORDS).map(|_| AtomicU64::new(0));
        Arc::new(Self {
            layout: Layout::new(regions.to_vec()).unwrap(),
            regions: regions
                .iter()
                .map(|region| words(region).collect())
                .collect(),
        })
    }

    fn words(&self, pages: PageRange) -> Result<&[AtomicU64], RamError> {
        let index = self.layout.check(pages)?;
        let first = (pages.first() - self.layout.regions()[index].first()) * PAGE_WORDS;
        let count = pages.count() * PAGE_WORDS;
        Ok(&self.regions[index][first as usize..(first + count) as usize])
    }

    fn all(&self) -> impl Iterator<Item = u64> + '_ {
        let words = self.regions.iter().flatten();
        words.map(|word| word.load(Ordering::Relaxed))
    }
}

impl GuestMemory for Mapping {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError> {
        let (bytes, _) = out.as_chunks_mut::<8>();
        for (bytes, word) in bytes.iter_mut().zip(self.words(range)?) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        Ok(())
    }

    fn write(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        let (bytes, _) = content.as_chunks::<8>();
        for (bytes, word) in bytes.iter().zip(self.words(range)?) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        Ok(())
    }

    fn discard(&self, range: PageRange) -> Result<(), RamError> {
        let zero = |word: &AtomicU64| word.store(0, Ordering::Relaxed);
        self.words(range)?.iter().for_each(zero);
        Ok(())
    }
}

/// The VMM's machine on either side. Its vCPU writes page 5 before it is stopped.
#[derive(Default)]
struct Machine {
    runs: bool,
}

impl SourceMachine for Machine {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        Ok(b"small".into())
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        self.runs = false;
        Ok(())
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        let mut state = MachineState::default();
        state.add("vcpu", 1, b"registers".into())?;
        Ok(state)
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.runs = true;
        Ok(())
    }

    fn hand_over(&mut self) {}
}

impl DestinationMachine for Machine {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        assert_eq!(description, b"small");
        Ok(())
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        let vcpu = state.take("vcpu")?;
        assert_eq!((vcpu.version, &vcpu.bytes[..]), (1, &b"registers"[..]));
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.runs = true;
        Ok(())
    }
}

/// The log of a vCPU that writes a page in each round.
struct Log(Arc<Mapping>, u64);

impl DirtyLog for Log {
    fn source(&self) -> LogSource {
        LogSource::Kvm
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        self.1 += 1;
        let page = PageRange::new(self.1, 1).unwrap();
        self.0.write(page, &[7; 4096]).unwrap();
        bitmap.insert(page);
        Ok(1)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

#[test]
fn memory_without_a_file_arrives_whole() {
    let (from, to) = (Mapping::new(), Mapping::new());
    for (number, word) in from.regions.iter().flatten().enumerate() {
        // Every third page has content.
        if (number as u64 / PAGE_WORDS).is_multiple_of(3) {
            word.store(number as u64, Ordering::Relaxed);
        }
    }
    let (here, there) = UnixStream::pair().unwrap();
    let arrived = Arc::clone(&to);
    let destination = thread::spawn(move || {
        let mut machine = Machine::default();
        let ownership = OwnershipRecord::there();
        let connection = Connection::try_from(there).unwrap();
        let received = receive(connection, &*arrived, &mut machine, &ownership, &mut |_| ());
        (received.map(|_| ()), machine.runs)
    });
    let mut machine = Machine { runs: true };
    let borrowed = Box::new(&mut machine);
    let mut source =
        Source::new(borrowed, Arc::<Mapping>::clone(&from)).log(Log(Arc::clone(&from), 0));
    let params = MigrationParams::default().with_max_rounds(3);
    let states = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&states);
    let on_change = move |status: &MigrationStatus| {
        seen.lock().unwrap().push(status.status);
        // A panic of the observer does no harm.
        assert!(status.status != MigrationState::Active);
    };
    let here = Connection::try_from(here).unwrap();
    let migration = Migration::observed(here, params, on_change);
    let monitor = migration.monitor();
    let report = migration.run(&mut source).unwrap();
    assert_eq!(monitor.status().status, MigrationState::Completed);
    assert!(!monitor.cancel(), "the guest was handed over");
    drop(source);
    assert!(
        !machine.runs,
        "the guest was stopped, and the machine is still here"
    );
    let (received, runs) = destination.join().unwrap();
    received.unwrap();
    assert!(runs);
    assert!(from.all().eq(to.all()));
    let expected = [
        MigrationState::Setup,
        MigrationState::Active,
        MigrationState::PreSwitchover,
        MigrationState::Device,
        MigrationState::Completed,
    ];
    assert_eq!(*states.lock().unwrap(), expected);
    assert_eq!(report.pages_holes, 0, "holes are unknown without a file");
    assert!(report.totals.pages_zero >= 780, "{report:?}");
}

#[test]
fn a_cancel_from_another_thread_ends_a_migration_on_this_one() {
    let memory = Mapping::new();
    // Nobody answers at the other end.
    let (here, _there) = UnixStream::pair().unwrap();
    let mut machine = Machine { runs: true };
    let mut source = Source::new(Box::new(&mut machine), memory);
    let here = Connection::try_from(here).unwrap();
    let migration = Migration::new(here, MigrationParams::default());
    let monitor = migration.monitor();
    let canceller = thread::spawn(move || monitor.cancel());
    let error = migration.run(&mut source).unwrap_err();
    assert!(matches!(error, MigrationError::Cancelled), "{error}");
    assert!(canceller.join().unwrap());
    drop(source);
    assert!(machine.runs);
}
