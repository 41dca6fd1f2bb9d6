// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that the engine hands over before its memory: of a machine that has memory and no processor.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use host_migrator::destination::{Postcopy, PostcopyEvent, PostcopyOptions};
use host_migrator::paging::{Mapping, PagingOptions};
use host_migrator::wire::{Address, Listener};
use host_migrator::{
    Connection, DestinationMachine, GuestRam, Incoming, MachineError, MachineState, Migration,
    MigrationParams, OwnershipRecord, PostcopyReport, PostcopyStart, ReceiveError, Source,
    StillMachine,
};

use super::super::BenchError;
use super::super::content::Content;
use super::super::memory::Destination;
use super::hints::OddPages;
use super::long_link::{self, Link};

/// How long this machine may take to connect to itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a guest is handed over.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandOver {
    /// Whether what nobody waits for comes at full speed, or hardly any of it.
    pub(super) pushes: bool,
    /// Whether the guest has said of the odd pages that they are free.
    pub(super) hints: bool,
    pub(super) channels: u32,
    pub(super) link: Option<Link>,
}

/// A guest that runs at the destination.
pub(super) struct Arrived<'a> {
    pub(super) ram: &'a GuestRam,
    postcopy: Postcopy,
    events: Receiver<PostcopyEvent>,
}

impl Arrived<'_> {
    /// Waits until all memory is there.
    pub(super) fn until_complete(&self) -> Result<(), BenchError> {
        match self.events.recv() {
            Ok(PostcopyEvent::Complete) => Ok(()),
            Ok(PostcopyEvent::Failed(error)) => Err(error.into()),
            _ => Err(BenchError::Ended {
                what: "all memory was there",
            }),
        }
    }
}

impl HandOver {
    /// Hands the guest with this `content` over, and does `work` while it runs at the destination and the rest of its memory is
    /// still to come. What has not come afterwards is given up.
    pub(super) fn with<T>(
        self,
        content: &Content,
        work: impl FnOnce(&Arrived<'_>) -> Result<T, BenchError>,
    ) -> Result<(T, PostcopyReport), BenchError> {
        let destination = Destination::new(content, false)?;
        let ram = destination.ram();
        let listener = Listener::bind(&loopback(0))?;
        let address = self.address(&listener)?;
        thread::scope(|scope| {
            let (tells, events) = channel();
            let (begins, begun) = channel();
            let receiving = thread::Builder::new()
                .name("destination".into())
                .spawn_scoped(scope, || receive(listener, ram, tells, begins))
                .map_err(BenchError::io("cannot start a thread"))?;
            let near = Connection::connect(&address, PATIENCE)?;
            let mut source = Source::new(Box::new(StillMachine), content.ram().clone());
            if self.hints {
                source = source.hints(OddPages::default());
            }
            let migration = Migration::start(source, self.params(), near)
                .map_err(BenchError::io("cannot start a thread"))?;
            let received = join(receiving);
            let done = received.map_err(BenchError::from).and_then(|()| {
                let postcopy = begun.recv().map_err(|_| BenchError::Ended {
                    what: "it had the guest",
                })?;
                let arrived = Arrived {
                    ram,
                    postcopy,
                    events,
                };
                let done = work(&arrived);
                // The rest is given up, and both sides end in peace.
                for region in ram.regions() {
                    arrived.postcopy.discard(*region);
                }
                done
            });
            let (_source, sent) = migration.join();
            // If the destination failed, the source can only repeat what it was told.
            let done = done?;
            let postcopy = sent?.postcopy.ok_or(BenchError::Ended {
                what: "it had the guest",
            })?;
            Ok((done, postcopy))
        })
    }

    fn params(&self) -> MigrationParams {
        let params = MigrationParams::default()
            .with_multifd_channels(self.channels)
            .with_postcopy(PostcopyStart::AtOnce);
        match self.pushes {
            true => params,
            false => params.with_max_postcopy_bandwidth(1),
        }
    }

    /// Where the source connects, to reach `listener`.
    fn address(&self, listener: &Listener) -> Result<Address, BenchError> {
        let (Some(link), Address::Tcp { port, .. }) = (self.link, listener.address()) else {
            return Ok(listener.address().clone());
        };
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        // The control connection, the channels of the rounds, and the lanes.
        let connections = 2 + 2 * self.channels as usize;
        let begin = long_link::open(link, to, connections)
            .map_err(BenchError::io("cannot make a long link"))?;
        Ok(loopback(begin.port()))
    }
}

fn loopback(port: u16) -> Address {
    Address::Tcp {
        host: Ipv4Addr::LOCALHOST.to_string(),
        port,
    }
}

/// Waits at `listener` for the guest.
fn receive(
    listener: Listener,
    ram: &GuestRam,
    tells: Sender<PostcopyEvent>,
    begins: Sender<Postcopy>,
) -> Result<(), ReceiveError> {
    let mut machine = Memory(ram);
    let source = Incoming::wait(&listener, ram, &mut machine)?;
    let postcopy = PostcopyOptions {
        threads: NonZeroUsize::MIN.max(PagingOptions::default().threads),
        begun: Box::new(move |postcopy| {
            // The other end waits for it.
            let _ = begins.send(postcopy);
        }),
        told: Box::new(move |event| {
            let _ = tells.send(event);
        }),
    };
    let ownership = OwnershipRecord::there();
    source.receive_early(ram, &mut machine, &ownership, &mut |_| (), postcopy)?;
    Ok(())
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A destination that is nothing but its memory, which may come late.
struct Memory<'a>(&'a GuestRam);

impl DestinationMachine for Memory<'_> {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        StillMachine.judge(description)
    }

    fn check(&mut self) -> Result<(), MachineError> {
        StillMachine.check()
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        StillMachine.load(state)
    }

    fn memory_will_be_missing(&mut self) -> Result<Vec<Mapping>, MachineError> {
        Ok(Mapping::all_of(self.0.memory()))
    }

    fn run(&mut self) -> Result<(), MachineError> {
        DestinationMachine::run(&mut StillMachine)
    }
}

/// How long `work` takes, in seconds.
pub(super) fn timed<T>(work: impl FnOnce() -> Result<T, BenchError>) -> Result<f64, BenchError> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64())
}
