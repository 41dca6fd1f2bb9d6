// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages go to another place than a connection, and are placed somewhere else than in guest memory.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use host_migrator::{
    Connection, Layout, Migration, MigrationError, MigrationParams, Owner, OwnershipRecord,
    PageStore, RamError, Sink, SinkError, StateSection, StoreSink, Totals, receive,
};
use software_guest::Guest;
use software_guest::copy::copy;
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, like};
use software_guest::workload::{Behaviour, Workload};
use spec::{PAGE_SIZE, PageRange};

/// A guest with content in every second page.
fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(3000, 500));
    for pfn in guest.memory.pages().filter(|pfn| pfn % 2 == 0) {
        guest.write(pfn);
    }
    Arc::new(guest)
}

/// What a sink is told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Pages,
    EndRound,
    State,
    Commit,
}

/// A sink that fails when it is told `at`.
struct Failing<'a> {
    sink: StoreSink<'a>,
    at: Told,
}

impl Failing<'_> {
    fn told(&self, what: Told) -> Result<(), SinkError> {
        match what == self.at {
            true => Err(io::Error::other("no room").into()),
            false => Ok(()),
        }
    }
}

impl Sink for Failing<'_> {
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError> {
        self.told(Told::Pages)?;
        self.sink.pages(runs, content)
    }

    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.sink.zero(runs)
    }

    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.sink.discard(runs)
    }

    fn end_round(&mut self, round: u32) -> Result<(), SinkError> {
        self.told(Told::EndRound)?;
        self.sink.end_round(round)
    }

    fn barrier(&mut self) -> Result<(), SinkError> {
        self.sink.barrier()
    }

    fn state(&mut self, section: &StateSection) -> Result<(), SinkError> {
        self.told(Told::State)?;
        self.sink.state(section)
    }

    fn commit(&mut self, totals: Totals) -> Result<(), SinkError> {
        self.told(Told::Commit)?;
        self.sink.commit(totals)
    }

    fn bytes(&self) -> u64 {
        self.sink.bytes()
    }

    fn check(&mut self) -> Result<(), SinkError> {
        self.sink.check()
    }
}

#[test]
fn a_guest_runs_on_after_a_copy_that_failed_and_can_be_copied_again() {
    let guest = guest();
    let behaviour = Behaviour {
        seed: 3,
        hints: true,
        pause: 10,
        first_page: 0,
    };
    let workload = Workload::start(&guest, behaviour);
    let mut source = guest.source();
    let params = MigrationParams::default();
    for at in [Told::Pages, Told::EndRound, Told::State, Told::Commit] {
        let ram = like(source.ram.as_ref());
        let sink = StoreSink::new(&ram).unwrap();
        let mut sink = Failing { sink, at };
        let error = Migration::copy(&mut source, &params, &mut sink).unwrap_err();
        assert!(matches!(error, MigrationError::Io(_)), "{at:?}: {error}");
        assert!(!guest.machine.is_stopped(), "{at:?}");
        assert!(!guest.vcpu_log.is_running() && !guest.own_log.is_running());
        assert_eq!(sink.sink.totals(), None, "{at:?}");
    }
    assert_eq!(guest.hints.done.load(Ordering::Acquire), 4);
    assert_eq!(guest.ownership.get().owner, Owner::Here);
    let copy = copy(&mut source, &guest.machine, &params).unwrap();
    assert_eq!(copy.wrong_pages(&guest.memory), []);
    guest.machine.take_back();
    workload.stop();
}

#[test]
fn a_guest_that_is_not_here_is_not_copied() {
    let guest = guest();
    let mut source = guest.source().ownership(OwnershipRecord::there());
    let ram = like(source.ram.as_ref());
    let mut sink = StoreSink::new(&ram).unwrap();
    let copied = Migration::copy(&mut source, &MigrationParams::default(), &mut sink);
    assert!(matches!(copied, Err(MigrationError::NotHere)), "{copied:?}");
}

/// Pages in a file that is no guest's memory, one region after the other.
struct PagesFile {
    layout: Layout,
    file: File,
}

impl PagesFile {
    fn offset(&self, range: PageRange) -> Result<u64, RamError> {
        let index = self.layout.check(range)?;
        let regions = self.layout.regions();
        let before: u64 = regions[..index].iter().map(|region| region.bytes()).sum();
        Ok(before + (range.first() - regions[index].first()) * PAGE_SIZE)
    }
}

impl PageStore for PagesFile {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn place(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        Ok(self.file.write_all_at(content, self.offset(range)?)?)
    }

    fn make_zero(&self, range: PageRange) -> Result<(), RamError> {
        let zeros = vec![0; range.bytes() as usize];
        Ok(self.file.write_all_at(&zeros, self.offset(range)?)?)
    }
}

#[test]
fn a_guest_arrives_in_a_store_that_is_no_guest_memory() {
    let guest = guest();
    let layout = guest.memory.ram.layout().clone();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[0xff; 1 << 16], 0).unwrap();
    let store = PagesFile { layout, file };
    let (here, there) = UnixStream::pair().unwrap();
    let destination = thread::spawn(move || {
        let mut machine = SoftDestination::default();
        let connection = Connection::try_from(there).unwrap();
        let ownership = OwnershipRecord::there();
        receive(connection, &store, &mut machine, &ownership, &mut |_| ()).unwrap();
        store
    });
    let connection = Connection::try_from(here).unwrap();
    let params = MigrationParams::default();
    let migration = Migration::start(guest.source(), params, connection).unwrap();
    migration.join().1.unwrap();
    let store = destination.join().unwrap();
    let ram = like(guest.memory.ram.as_ref());
    for region in store.layout.regions() {
        let mut content = vec![0; region.bytes() as usize];
        let offset = store.offset(*region).unwrap();
        store.file.read_exact_at(&mut content, offset).unwrap();
        ram.write(*region, &content).unwrap();
    }
    assert_eq!(guest.memory.wrong_pages(&ram, None), []);
}
