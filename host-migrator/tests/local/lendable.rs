// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which memory can be lent, and over which connections.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use host_migrator::{
    Connection, GuestMemory, GuestRam, Layout, Migration, MigrationError, OwnershipRecord,
    PageRange, RamError, RamRegion, ReceiveError, receive,
};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::software_guest::certificates::Authority;
use super::software_guest::link::{Link, wire};
use super::software_guest::local::{as_it_should_be, hand_over};
use super::software_guest::machine::SoftDestination;
use super::software_guest::memory::{Memory, like};
use super::software_guest::{Guest, migrate, migrate_over, migrate_secured};
use super::{goes_on, guest, params};

#[test]
fn memory_is_lent_over_a_unix_socket_only() {
    let guest = guest();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let there = listener.accept().unwrap().0;
    let own = like(guest.memory.ram.as_ref());
    let destination = thread::spawn(move || {
        let (mut machine, ownership) = (SoftDestination::default(), OwnershipRecord::there());
        let there = Connection::try_from(there).unwrap();
        receive(there, &own, &mut machine, &ownership, &mut |_| ())
    });
    let connection = Connection::try_from(here).unwrap();
    let migration = Migration::new(connection, params().with_local(true));
    let error = migration.run(&mut guest.source()).unwrap_err();
    assert!(matches!(error, MigrationError::NotLocal), "{error}");
    assert!(matches!(
        destination.join().unwrap(),
        Err(ReceiveError::Stream(_))
    ));
    goes_on(&guest);
}

#[test]
fn memory_is_not_lent_over_tls() {
    let guest = guest();
    let authority = Authority::new();
    let (source, destination) = (authority.side(), authority.side());
    let streams = vec![UnixStream::pair().unwrap()];
    let ram = Arc::new(like(guest.memory.ram.as_ref()));
    let params = params().with_local(true);
    let outcome = migrate_secured(guest.source(), params, streams, ram, &source, &destination);
    let error = outcome.sent.unwrap_err();
    assert!(matches!(error, MigrationError::NotLocal), "{error}");
    assert!(outcome.received.is_err());
    goes_on(&guest);
}

/// Memory of which the engine sees no files.
struct Mapping(Arc<GuestRam>);

impl GuestMemory for Mapping {
    fn layout(&self) -> &Layout {
        self.0.layout()
    }

    fn read(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError> {
        self.0.read(range, out)
    }

    fn write(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        self.0.write(range, content)
    }

    fn discard(&self, range: PageRange) -> Result<(), RamError> {
        self.0.discard(range)
    }
}

#[test]
fn memory_that_is_in_no_files_cannot_be_lent() {
    let guest = guest();
    let mut source = guest.source();
    source.ram = Arc::new(Mapping(Arc::clone(&guest.memory.ram)));
    let outcome = migrate(source, params().with_local(true));
    let error = outcome.sent.unwrap_err();
    assert!(matches!(error, MigrationError::NoMemoryFiles), "{error}");
    assert!(outcome.received.is_err());
    goes_on(&guest);
}

#[test]
fn memory_of_huge_pages_is_lent_as_it_is() {
    const HUGE: u64 = 2 << 20;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let made = memfd_create("huge", flags).map_err(std::io::Error::from);
    let made = made.and_then(|file| {
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 * HUGE)?;
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        Ok(file)
    });
    let file = match made {
        Ok(file) => file,
        Err(error) => {
            return spec_testing::skipped(format_args!(
                "this machine has no two huge pages to spare ({error})"
            ));
        }
    };
    let region = RamRegion {
        gpa: 0,
        len: 2 * HUGE,
        file: file.into(),
        offset: 0,
    };
    let ram = GuestRam::map(vec![region]).unwrap();
    let guest = Guest::new(Memory::of(Arc::new(ram)));
    for pfn in guest.memory.pages().step_by(3) {
        guest.write(pfn);
    }
    let ended = hand_over(&guest, params(), &as_it_should_be());
    ended.sent.as_ref().unwrap();
    assert_eq!(guest.memory.wrong_pages(ended.memory(), None), []);
}

#[test]
fn a_guest_with_the_most_regions_is_lent_with_all_of_them() {
    let regions = (0..512).map(|n| RamRegion::new(n << 20, 8192).unwrap());
    let ram = GuestRam::map(regions.collect()).unwrap();
    let guest = Guest::new(Memory::of(Arc::new(ram)));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    let ended = hand_over(&guest, params(), &as_it_should_be());
    assert_eq!(ended.sent.as_ref().unwrap().lent.unwrap().files, 512);
    assert_eq!(guest.memory.wrong_pages(ended.memory(), None), []);
}

#[test]
fn a_link_that_passes_bytes_only_is_named() {
    let guest = guest();
    let (here, there) = wire(Link::default(), Link::default());
    let (here, there): (UnixStream, UnixStream) = (here, there);
    let ram = Arc::new(like(guest.memory.ram.as_ref()));
    let params = params().with_local(true);
    let outcome = migrate_over(guest.source(), params, here, there, ram);
    let error = outcome.sent.unwrap_err().to_string();
    assert!(
        error.contains("0 file descriptors came for 2 regions"),
        "{error}"
    );
    goes_on(&guest);
}
