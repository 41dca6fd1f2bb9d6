// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A destination that waits over TCP for a guest.

use std::net::TcpStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use host_migrator::{
    Address, Connection, GuestRam, Incoming, Listener, Migration, MigrationParams, MigrationReport,
    Owner, OwnershipRecord, ReceiveError,
};

use super::Guest;
use super::machine::SoftDestination;
use super::memory::like;

/// The time limit for what must happen.
pub const FOR_EVER: Duration = Duration::from_secs(30);

/// A destination that waits for a guest.
pub struct Waiting {
    pub address: Address,
    pub ram: Arc<GuestRam>,
    /// Whether the guest runs there and is its own.
    pub thread: JoinHandle<Result<bool, ReceiveError>>,
}

impl Waiting {
    pub fn for_a_guest_like(guest: &Guest) -> Self {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        Self::at(listener, guest)
    }

    /// Waits at `listener` for a guest like `guest`.
    pub fn at(listener: Listener, guest: &Guest) -> Self {
        let ram = Arc::new(like(&guest.memory.ram));
        let address = listener.address().clone();
        let into = Arc::clone(&ram);
        let thread = thread::spawn(move || {
            let mut machine = SoftDestination::default();
            let ownership = OwnershipRecord::there();
            let source = Incoming::wait(&listener, &into, &mut machine)?;
            source.receive(&into, &mut machine, &ownership, &mut |_| ())?;
            Ok(machine.runs && ownership.get().owner == Owner::Here)
        });
        Self {
            address,
            ram,
            thread,
        }
    }

    /// Somebody connects.
    pub fn stranger(&self) -> TcpStream {
        let Address::Tcp { host, port } = &self.address else {
            unreachable!()
        };
        TcpStream::connect((host.as_str(), *port)).unwrap()
    }

    /// The true source connects, and its guest arrives.
    pub fn receives(self, guest: &Guest, params: MigrationParams) -> MigrationReport {
        let connection = Connection::connect(&self.address, FOR_EVER).unwrap();
        self.receives_over(connection, guest, params)
    }

    /// The true source has connected, and its guest arrives.
    pub fn receives_over(
        self,
        connection: Connection,
        guest: &Guest,
        params: MigrationParams,
    ) -> MigrationReport {
        let (_, sent) = Migration::start(guest.source(), params, connection)
            .unwrap()
            .join();
        let report = sent.unwrap();
        assert!(self.thread.join().unwrap().unwrap());
        assert_eq!(guest.memory.wrong_pages(&self.ram, None), []);
        report
    }
}
