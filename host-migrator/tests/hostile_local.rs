// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources that lend what no honest source lends: each is refused and named, nothing is mapped, and no descriptor is left open.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use host_migrator::{
    Connection, DestinationMachine, GuestRam, LentError, MachineError, MachineState,
    OwnershipRecord, RamRegion, ReceiveError, receive,
};
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use software_guest::local::picture;
use software_guest::machine::DESCRIPTION;
use software_guest::memory::{Memory, like};
use spec::stream::{
    GREETING_BYTES, Greeting, SECTION_HEADER_BYTES, SectionHeader, SectionKind, StreamHeader,
    lent_to_bytes,
};
use spec_testing::open_files;

/// Held by each test: they count what this process has open.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes of the two regions.
const REGIONS: [u64; 2] = [64 << 12, 8 << 12];
const BYTES: u64 = REGIONS[0] + REGIONS[1];

/// A destination that must not be given any memory.
#[derive(Default)]
struct Wary {
    took: bool,
    gave_back: bool,
}

impl DestinationMachine for Wary {
    fn judge(&mut self, _description: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        self.took = true;
        drop(GuestRam::map(memory).unwrap());
        Ok(())
    }

    fn give_memory_back(&mut self) {
        self.gave_back = true;
    }

    fn load(&mut self, _state: &mut MachineState) -> Result<(), MachineError> {
        panic!("no guest arrives here")
    }

    fn run(&mut self) -> Result<(), MachineError> {
        panic!("no guest arrives here")
    }
}

/// A source that sends whatever the test orders.
struct Liar<S> {
    stream: S,
    sequence: u32,
}

impl<S: Read + Write> Liar<S> {
    fn section(&mut self, kind: SectionKind, payload: &[u8]) {
        let header = self.header(kind, payload);
        let _ = self.stream.write_all(&[&header, payload].concat());
    }

    fn header(&mut self, kind: SectionKind, payload: &[u8]) -> [u8; SECTION_HEADER_BYTES] {
        let header = SectionHeader {
            kind,
            sequence: self.sequence,
            round: 1,
            length: payload.len() as u64,
            payload_crc: crc32fast::hash(payload),
        };
        self.sequence += 1;
        header.to_bytes()
    }

    /// Introduces a guest whose memory is lent.
    fn introduce(&mut self, ram: &GuestRam) {
        let mut greeting = [0; GREETING_BYTES];
        self.stream.read_exact(&mut greeting).unwrap();
        let header = StreamHeader {
            session: Greeting::from_bytes(&greeting).unwrap().session,
            number: 0,
            ram_bytes: BYTES,
            regions: 2,
            channels: 0,
            local: true,
            lanes: 0,
        };
        self.stream.write_all(&header.to_bytes()).unwrap();
        self.section(SectionKind::Layout, &ram.layout().to_bytes());
        self.section(SectionKind::Description, DESCRIPTION);
    }
}

impl Liar<UnixStream> {
    /// Sends `bytes`, and with them the descriptors of `files`.
    fn pass(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        assert!(files.is_empty() || message.push(SendAncillaryMessage::ScmRights(files)));
        let flags = SendFlags::NOSIGNAL;
        let _ = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut message, flags);
    }

    /// Lends `files`, the regions at `offsets` of them.
    fn lend(&mut self, files: &[BorrowedFd<'_>], offsets: &[u64]) {
        let table: Vec<u8> = offsets.iter().copied().flat_map(lent_to_bytes).collect();
        let header = self.header(SectionKind::Memory, &table);
        self.pass(&header, &[]);
        self.pass(&table, files);
    }
}

/// The destination's error, and the reason that the source was told, after `lies`.
fn refused(lies: impl FnOnce(&mut Liar<UnixStream>, &GuestRam)) -> (ReceiveError, String) {
    let before = open_files(std::process::id());
    let (here, there) = UnixStream::pair().unwrap();
    let own = like(&Memory::new(64, 8).ram);
    let untouched = picture(&own);
    let (error, told) = thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let (mut machine, ownership) = (Wary::default(), OwnershipRecord::there());
            let there = Connection::try_from(there).unwrap();
            let received = receive(there, &own, &mut machine, &ownership, &mut |_| ());
            (received.unwrap_err(), machine)
        });
        let mut liar = Liar {
            stream: here,
            sequence: 0,
        };
        liar.introduce(&own);
        lies(&mut liar, &own);
        let _ = liar.stream.shutdown(Shutdown::Write);
        let mut told = Vec::new();
        let _ = liar.stream.read_to_end(&mut told);
        let (error, machine) = destination.join().unwrap();
        assert!(!machine.took && machine.gave_back, "{error}");
        (error, String::from_utf8_lossy(&told).into_owned())
    });
    assert_eq!(picture(&own), untouched, "{error}");
    drop(own);
    assert_eq!(open_files(std::process::id()), before, "{error}");
    (error, told)
}

/// A memory file.
fn memory(bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("lent", flags).unwrap();
    ftruncate(&file, bytes).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

fn good(region: usize) -> OwnedFd {
    memory(REGIONS[region], SealFlags::SHRINK)
}

/// The file of the second region is `file`: it is refused because of `reason`, and the source is told so.
#[track_caller]
fn assert_unfit(file: impl FnOnce() -> OwnedFd, offset: u64, reason: &str) {
    let (error, told) = refused(|liar, _| {
        let files = [good(0), file()];
        liar.lend(&files.each_ref().map(AsFd::as_fd), &[0, offset]);
    });
    let text = error.to_string();
    assert!(
        matches!(error, ReceiveError::Lent(LentError::File { .. })),
        "{text}"
    );
    assert!(
        text.contains(reason) && told.contains(reason),
        "{text}; told {told:?}"
    );
    assert!(text.contains("0x1000000"), "the region is named: {text}");
}

#[test]
fn files_that_are_no_memory_are_refused() {
    let _alone = ALONE.lock();
    let pipe = || std::io::pipe().unwrap().1.into();
    let socket = || UnixStream::pair().unwrap().0.into();
    let proc = || File::open("/proc/self/maps").unwrap().into();
    let folder = || File::open("/").unwrap().into();
    let made: [fn() -> OwnedFd; 4] = [pipe, socket, proc, folder];
    for file in made {
        assert_unfit(file, 0, "is not a memory file");
    }
}

#[test]
fn memory_that_can_shrink_or_cannot_be_written_is_refused() {
    let _alone = ALONE.lock();
    let unsealed = || memory(REGIONS[1], SealFlags::GROW);
    assert_unfit(unsealed, 0, "can shrink");
    let sealed = || memory(REGIONS[1], SealFlags::SHRINK | SealFlags::WRITE);
    assert_unfit(sealed, 0, "cannot be written");
    let read_only = || {
        let file = good(1);
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        File::open(format!("/proc/self/fd/{number}"))
            .unwrap()
            .into()
    };
    assert_unfit(read_only, 0, "cannot be written");
}

#[test]
fn regions_that_do_not_lie_in_their_files_are_refused() {
    let _alone = ALONE.lock();
    let short = || memory(REGIONS[1] - 1, SealFlags::SHRINK);
    assert_unfit(short, 0, "is too short");
    assert_unfit(|| good(1), 4096, "is too short");
    assert_unfit(|| good(1), u64::MAX, "is too short");
    let long = || memory(1 << 20, SealFlags::SHRINK);
    assert_unfit(long, 1, "whole ones");
    let (error, _) = refused(|liar, _| {
        let both = memory(1 << 20, SealFlags::SHRINK);
        liar.lend(&[both.as_fd(), both.as_fd()], &[4096, 0]);
    });
    assert!(error.to_string().contains("another region"), "{error}");
}

#[test]
fn as_many_descriptors_as_regions_come_or_none_is_taken() {
    let _alone = ALONE.lock();
    let file = good(0);
    for count in [0, 1] {
        let (error, told) = refused(|liar, _| liar.lend(&[file.as_fd()][..count], &[0, 0]));
        let expected = format!("{count} file descriptors came for 2 regions");
        assert!(told.contains(&expected), "{told}");
        assert!(
            matches!(error, ReceiveError::Lent(LentError::Descriptors { .. })),
            "{error}"
        );
    }
    for count in [3, 253] {
        let (error, _) = refused(|liar, _| liar.lend(&vec![file.as_fd(); count], &[0, 0]));
        assert!(
            error.to_string().contains("more than 2 file descriptors"),
            "{error}"
        );
    }
}

#[test]
fn a_thousand_descriptors_byte_by_byte_are_no_more_than_two() {
    let _alone = ALONE.lock();
    let file = good(0);
    let (error, _) = refused(|liar, _| {
        let table = [0, 0].map(lent_to_bytes).concat();
        let header = liar.header(SectionKind::Memory, &table);
        liar.pass(&header, &[]);
        for byte in table {
            liar.pass(&[byte], &vec![file.as_fd(); 70]);
        }
    });
    assert!(
        error.to_string().contains("more than 2 file descriptors"),
        "{error}"
    );
}

#[test]
fn descriptors_where_none_are_due_are_closed() {
    let _alone = ALONE.lock();
    let file = good(0);
    // With the section's header: the kernel closes them, and none are left for the table.
    let (error, _) = refused(|liar, _| {
        let table = [0, 0].map(lent_to_bytes).concat();
        let header = liar.header(SectionKind::Memory, &table);
        liar.pass(&header, &[file.as_fd(), file.as_fd()]);
        liar.pass(&table, &[]);
    });
    assert!(
        matches!(error, ReceiveError::Lent(LentError::Descriptors { .. })),
        "{error}"
    );
    // With another section.
    for kind in [
        SectionKind::Pages,
        SectionKind::MachineState,
        SectionKind::Commit,
    ] {
        let (error, _) = refused(|liar, _| {
            let header = liar.header(kind, &[]);
            liar.pass(&header, &[file.as_fd(); 253]);
        });
        assert!(matches!(error, ReceiveError::Stream(_)), "{error}");
    }
    // With nothing that anybody reads.
    refused(|liar, _| {
        liar.pass(&[7; 40], &[file.as_fd(); 253]);
        liar.pass(&[7; 40], &[file.as_fd(); 253]);
    });
}

#[test]
fn a_table_of_other_regions_is_refused() {
    let _alone = ALONE.lock();
    let files = [good(0), good(1)];
    for offsets in [&[][..], &[0], &[0, 0, 0]] {
        let lent = files.each_ref().map(AsFd::as_fd);
        let (error, _) = refused(|liar, _| liar.lend(&lent[..offsets.len().min(2)], offsets));
        assert!(error.to_string().contains("Memory"), "{offsets:?}: {error}");
    }
}

#[test]
fn pages_do_not_come_where_memory_is_lent() {
    let _alone = ALONE.lock();
    let (error, _) = refused(|liar, _| liar.section(SectionKind::RoundEnd, &[]));
    let expected = "a RoundEnd section arrived where the source's memory was due";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn memory_is_not_lent_over_tcp() {
    let _alone = ALONE.lock();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let there = Connection::try_from(listener.accept().unwrap().0).unwrap();
    let own = like(&Memory::new(64, 8).ram);
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let (mut machine, ownership) = (Wary::default(), OwnershipRecord::there());
            receive(there, &own, &mut machine, &ownership, &mut |_| ())
        });
        let mut liar = Liar {
            stream,
            sequence: 0,
        };
        liar.introduce(&own);
        let mut told = Vec::new();
        let _ = liar.stream.read_to_end(&mut told);
        let error = destination.join().unwrap().unwrap_err();
        assert!(matches!(error, ReceiveError::NotLocal), "{error}");
        let told = String::from_utf8_lossy(&told);
        assert!(
            told.contains("over a unix socket without TLS only"),
            "{told}"
        );
    });
}
