// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest made of threads: real memory files, a real hint map, real concurrent writes; no KVM.
//!
//! Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod balloon;
pub mod certificates;
pub mod copy;
pub mod hints;
pub mod link;
pub mod local;
pub mod machine;
pub mod memory;
pub mod proxy;
pub mod waiting;
pub mod workload;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use host_migrator::wire::TlsConfig;
use host_migrator::{
    Connection, GuestRam, Migration, MigrationBitmap, MigrationError, MigrationParams,
    MigrationReport, OwnershipRecord, ReceiveError, ReceiveReport, Source, Trace, receive,
};

use hints::{HintsForEngine, SoftHints};
use machine::{MachineForEngine, SoftDestination, SoftMachine};
use memory::{Memory, SoftLog, WrongPage};
use spec::trace::Role;
use spec::trace::check::{Verdict, check_records};

/// A source guest. Tests look into its parts while the engine uses them.
pub struct Guest {
    pub memory: Arc<Memory>,
    pub machine: Arc<SoftMachine>,
    pub hints: Arc<SoftHints>,
    pub vcpu_log: SoftLog,
    pub own_log: SoftLog,
    pub trace: Trace,
    pub ownership: OwnershipRecord,
}

impl Guest {
    pub fn new(memory: Memory) -> Self {
        let pages = memory.ram.bitmap_pages();
        let trace = new_trace();
        let vcpu_log = SoftLog::new(host_migrator::LogSource::Kvm, pages);
        Self {
            machine: Arc::new(SoftMachine::default()),
            hints: Arc::new(SoftHints::new(pages, trace.of(Role::Device))),
            own_log: SoftLog::new(host_migrator::LogSource::OwnWrites, pages),
            memory: Arc::new(memory),
            vcpu_log,
            trace,
            ownership: OwnershipRecord::here(),
        }
    }

    /// A guest that has written every page of `memory`.
    pub fn with_all_written(memory: Memory) -> Self {
        let guest = Self::new(memory);
        guest.memory.pages().for_each(|pfn| guest.write(pfn));
        guest
    }

    /// A small guest that has written six of its pages, at both ends of its bitmap's words.
    pub fn with_six_pages() -> Self {
        let guest = Self::new(Memory::new(70, 0));
        [1, 2, 3, 10, 63, 64]
            .into_iter()
            .for_each(|pfn| guest.write(pfn));
        guest
    }

    /// The source that the engine gets.
    pub fn source(&self) -> Source<'static> {
        let machine = Box::new(MachineForEngine(Arc::clone(&self.machine)));
        Source::new(machine, Arc::<GuestRam>::clone(&self.memory.ram))
            .log(self.vcpu_log.clone())
            .log(self.own_log.clone())
            .hints(HintsForEngine(Arc::clone(&self.hints)))
            .trace(self.trace.clone())
            .ownership(self.ownership.clone())
    }

    /// The guest writes `pfn`, and may thereby reuse it.
    pub fn write(&self, pfn: u64) {
        self.memory.write(pfn);
        self.vcpu_log.mark(pfn);
    }

    /// The guest writes zeros to `pfn`.
    pub fn write_zeros(&self, pfn: u64) {
        let zeros = [0; spec::PAGE_SIZE as usize];
        let page = memory::one(pfn);
        self.memory.ram.write(page, &zeros).unwrap();
        self.memory.free(pfn);
        self.vcpu_log.mark(pfn);
    }

    /// The VMM writes `pfn`.
    pub fn write_by_vmm(&self, pfn: u64) {
        self.memory.write(pfn);
        self.own_log.mark(pfn);
    }
}

/// How a migration ended on both sides.
pub struct Outcome {
    pub source: Source<'static>,
    pub sent: Result<MigrationReport, MigrationError>,
    pub received: Result<ReceiveReport, ReceiveError>,
    pub destination: SoftDestination,
    /// The destination's record of ownership.
    pub arrived: OwnershipRecord,
    pub ram: Arc<GuestRam>,
    /// The verdict on the trace of this guest's migrations.
    pub verdict: Verdict,
}

/// A guest's own trace, in a temporary file.
fn new_trace() -> Trace {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    Trace::create(&path, 1 << 16).unwrap();
    Trace::open(&path, 0).unwrap()
}

impl Outcome {
    /// The guest has arrived, and every page is right.
    ///
    /// # Panics
    /// If not.
    pub fn assert_exact(&self, guest: &Guest) {
        if let Err(error) = &self.sent {
            panic!("the migration failed: {error}");
        }
        assert!(self.received.is_ok() && self.destination.runs);
        assert_eq!(self.wrong_pages(&guest.memory), []);
    }

    /// Pages of `memory` that are wrong at the destination.
    pub fn wrong_pages(&self, memory: &Memory) -> Vec<WrongPage> {
        let skipped: Option<&MigrationBitmap> =
            self.sent.as_ref().ok().and_then(|r| r.skipped.as_deref());
        memory.wrong_pages(&self.ram, skipped)
    }

    pub fn report(&self) -> &MigrationReport {
        self.sent.as_ref().expect("the migration completed")
    }
}

/// Parameters for exactly `rounds` rounds and the last one, however little is pending.
pub fn rounds(count: u32) -> MigrationParams {
    MigrationParams::default()
        .with_downtime_limit(Duration::ZERO)
        .with_max_rounds(count)
}

/// Migrates `source` into new memory, over a unix socket.
pub fn migrate(source: Source<'static>, params: MigrationParams) -> Outcome {
    let (here, there) = UnixStream::pair().unwrap();
    let ram = Arc::new(memory::like(source.ram.as_ref()));
    migrate_over(source, params, here, there, ram)
}

/// Migrates `source` into `ram` between two connected streams. The trace must satisfy the rule, unless a clause is
/// switched off.
pub fn migrate_over(
    source: Source<'static>,
    params: MigrationParams,
    here: UnixStream,
    there: UnixStream,
    ram: Arc<GuestRam>,
) -> Outcome {
    migrate_on(source, params, vec![(here, there)], ram)
}

/// As [`migrate_over`], with a control connection and the channels after it.
pub fn migrate_on(
    source: Source<'static>,
    params: MigrationParams,
    streams: Vec<(UnixStream, UnixStream)>,
    ram: Arc<GuestRam>,
) -> Outcome {
    let (here, there): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
    let (here, there) = (connection(here), connection(there));
    migrate_between(source, params, || Ok(here), there, ram)
}

/// As [`migrate_on`], with TLS between an end of `source` and one of `destination`.
pub fn migrate_secured(
    guest: Source<'static>,
    params: MigrationParams,
    streams: Vec<(UnixStream, UnixStream)>,
    ram: Arc<GuestRam>,
    source: &TlsConfig,
    destination: &TlsConfig,
) -> Outcome {
    let (here, there): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
    let (here, there) = (connection(here), connection(there));
    let here = here.with_patience(params.peer_timeout);
    let there = there.awaiting_tls(destination);
    migrate_between(guest, params, || here.with_tls(source), there, ram)
}

/// Migrates `source` into `ram`. Its end of the connection is made when the destination waits at `there`.
fn migrate_between(
    source: Source<'static>,
    params: MigrationParams,
    here: impl FnOnce() -> io::Result<Connection>,
    there: Connection,
    ram: Arc<GuestRam>,
) -> Outcome {
    let there = there.with_patience(params.peer_timeout);
    let destination_ram = Arc::clone(&ram);
    let destination = thread::spawn(move || {
        let mut machine = SoftDestination::default();
        let ownership = OwnershipRecord::there();
        let observer = &mut |_: &_| ();
        let result = receive(there, &destination_ram, &mut machine, &ownership, observer);
        (machine, ownership, result)
    });
    let keeps_the_rule = keeps_the_rule(&params);
    let (source, sent) = match here() {
        Ok(here) => Migration::start(source, params, here).unwrap().join(),
        Err(error) => (source, Err(error.into())),
    };
    let (destination, arrived, received) = destination.join().unwrap();
    let verdict = verdict(&source);
    assert!(
        matches!(verdict, Verdict::Holds(_)) || !keeps_the_rule,
        "{verdict}"
    );
    Outcome {
        source,
        sent,
        received,
        destination,
        arrived,
        ram,
        verdict,
    }
}

/// Sockets for so many connections.
pub fn pairs(count: u32) -> Vec<(UnixStream, UnixStream)> {
    (0..count).map(|_| UnixStream::pair().unwrap()).collect()
}

/// A control connection, with the channels after it.
pub fn connection(streams: Vec<UnixStream>) -> Connection {
    let mut connections = (streams.into_iter()).map(|stream| Connection::try_from(stream).unwrap());
    connections.next().unwrap().with_more(connections)
}

/// What the checker says about the trace of `source`.
fn verdict(source: &Source<'_>) -> Verdict {
    let (records, dropped) = source.trace.records();
    check_records(records, dropped)
}

#[cfg(clause_switches)]
fn keeps_the_rule(params: &MigrationParams) -> bool {
    params.switched_off.is_empty()
}

#[cfg(not(clause_switches))]
fn keeps_the_rule(_params: &MigrationParams) -> bool {
    true
}
