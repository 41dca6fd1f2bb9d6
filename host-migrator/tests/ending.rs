// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a failed migration ends: first the guest, then its logs and hints, last the destination.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use host_migrator::{
    Connection, MachineError, MachineState, Migration, MigrationParams, Source, SourceMachine,
};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use software_guest::Guest;
use software_guest::memory::Memory;
use spec::stream::{
    GREETING_BYTES, Greeting, SECTION_HEADER_BYTES, STREAM_HEADER_BYTES, SectionHeader, SectionKind,
};
use spec::trace::Event;

/// A destination controlled by the test: it reads only as many bytes as it is told to.
struct Destination {
    stream: UnixStream,
    sequence: u32,
}

impl Destination {
    fn greet(stream: UnixStream) -> Self {
        let mut it = Self {
            stream,
            sequence: 0,
        };
        let greeting: [u8; GREETING_BYTES] = Greeting { session: 5 }.to_bytes();
        it.stream.write_all(&greeting).unwrap();
        it.stream.read_exact(&mut [0; STREAM_HEADER_BYTES]).unwrap();
        it
    }

    /// Reads one section; `None` at the end of the stream.
    fn section(&mut self) -> Option<(SectionKind, Vec<u8>)> {
        let mut header = [0; SECTION_HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let header = SectionHeader::from_bytes(&header).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Some((header.kind, payload))
    }

    fn read_up_to(&mut self, kind: SectionKind) {
        while self.section().unwrap().0 != kind {}
    }

    fn answer(&mut self, kind: SectionKind) {
        let header = SectionHeader {
            kind,
            sequence: self.sequence,
            round: 1,
            length: 0,
            payload_crc: crc32fast::hash(&[]),
        };
        self.sequence += 1;
        self.stream.write_all(&header.to_bytes()).unwrap();
    }

    /// Reads and discards what has arrived. Does not wait.
    fn forget_received(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
        let mut bytes = vec![0; 64 << 10];
        let end = loop {
            match self.stream.read(&mut bytes) {
                Ok(1..) => {}
                end => break end,
            }
        };
        assert_eq!(end.unwrap_err().kind(), ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).unwrap();
    }
}

/// Writes junk to `stream` until it is full.
fn fill(stream: &UnixStream) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    for size in [16 << 10, 1] {
        let junk = vec![0; size];
        let end = loop {
            match send(stream, &junk, flags) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(end, Errno::AGAIN);
    }
}

/// A machine that cannot be saved, and what happens while it fails.
struct Unsavable(Box<dyn SourceMachine>, Box<dyn FnMut() + Send>);

impl SourceMachine for Unsavable {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        self.0.describe()
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        self.0.stop_vcpus()
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        self.0.stop_devices()
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        (self.1)();
        Err(MachineError {
            action: "save the machine",
            reason: "the test has ordered this error".into(),
        })
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.0.resume()
    }

    fn hand_over(&mut self) {
        self.0.hand_over();
    }
}

/// A migration that fails while the guest is stopped, and whose connection takes no more bytes. `source` is what the
/// engine gets; `destination` arrives when the connection is full.
struct Failing {
    source: Source<'static>,
    channel: Connection,
    destination: Receiver<Destination>,
}

fn failing(guest: &Guest) -> Failing {
    let (here, there) = UnixStream::pair().unwrap();
    let full = here.try_clone().unwrap();
    let (tell, heard_all) = channel();
    thread::spawn(move || {
        let mut destination = Destination::greet(there);
        destination.read_up_to(SectionKind::Description);
        destination.answer(SectionKind::Accept);
        destination.read_up_to(SectionKind::RoundEnd);
        destination.answer(SectionKind::RoundReceived);
        destination.read_up_to(SectionKind::RoundEnd);
        tell.send(destination).unwrap();
    });
    let (tell, destination) = channel();
    let mut source = guest.source();
    let save = move || {
        // It reads nothing from here on.
        let destination = heard_all.recv().unwrap();
        fill(&full);
        tell.send(destination).unwrap();
    };
    source.machine = Box::new(Unsavable(source.machine, Box::new(save)));
    Failing {
        source,
        channel: here.try_into().unwrap(),
        destination,
    }
}

/// Time limits that are never reached: for a silent destination, and for the switchover.
fn patient() -> MigrationParams {
    MigrationParams::default()
        .with_max_rounds(1)
        .with_peer_timeout(Duration::from_secs(100_000))
        .with_switchover_timeout(Duration::from_secs(100_000))
}

fn guest() -> Guest {
    let guest = Guest::new(Memory::new(70, 0));
    (0..64).for_each(|pfn| guest.write(pfn));
    guest
}

/// Checks `guest` when its hints end: by then the guest runs and its logs have stopped.
fn check_when_done(guest: &Guest, then: impl FnOnce() + Send + 'static) {
    let machine = Arc::clone(&guest.machine);
    let logs = [guest.vcpu_log.clone(), guest.own_log.clone()];
    guest.hints.on_done(move || {
        assert!(
            !machine.is_stopped(),
            "the guest runs again before its hints end"
        );
        assert!(
            !logs.iter().any(|log| log.is_running()),
            "the logs stop before the hints end"
        );
        then();
    });
}

/// In which order the trace says that a failure undoes what the migration did.
fn put_back_in_order(guest: &Guest) -> Vec<Event> {
    let (records, _) = guest.trace.records();
    let events = records.into_iter().flatten().map(|record| record.event);
    events
        .skip_while(|event| *event != Event::DevicesStopped)
        .filter(|event| {
            matches!(
                event,
                Event::Resuming | Event::LogStopped(_) | Event::Done | Event::End(_)
            )
        })
        .collect()
}

#[test]
fn the_destination_is_told_after_guest_logs_and_hints_were_restored() {
    let guest = guest();
    let Failing {
        source,
        channel,
        destination,
    } = failing(&guest);
    let kept = Arc::new(Mutex::new(None));
    let keeper = Arc::clone(&kept);
    check_when_done(&guest, move || {
        // Only now is there room for the message to the destination. An earlier attempt would have failed.
        let mut destination = destination.recv().unwrap();
        destination.forget_received();
        *keeper.lock().unwrap() = Some(destination);
    });
    let (_, sent) = Migration::start(source, patient(), channel).unwrap().join();
    let error = sent.unwrap_err().to_string();
    assert!(error.contains("the test has ordered this error"), "{error}");
    let order = put_back_in_order(&guest);
    assert!(
        matches!(
            order[..],
            [
                Event::Resuming,
                Event::LogStopped(_),
                Event::LogStopped(_),
                Event::Done,
                Event::End(_)
            ]
        ),
        "{order:?}"
    );
    let mut destination = kept.lock().unwrap().take().expect("the guest is told DONE");
    let told = loop {
        match destination.section() {
            Some((SectionKind::Heartbeat, _)) => {}
            told => break told,
        }
    };
    let (kind, why) = told.expect("the destination is told");
    assert_eq!(kind, SectionKind::Abort);
    assert_eq!(String::from_utf8(why).unwrap(), error);
}

#[test]
fn a_destination_that_takes_no_byte_is_not_waited_for_without_end() {
    let guest = guest();
    let Failing {
        source,
        channel,
        destination,
    } = failing(&guest);
    check_when_done(&guest, || ());
    // Without a limit it would wait for ever.
    let (_, sent) = Migration::start(source, patient(), channel).unwrap().join();
    assert!(sent.is_err());
    assert_eq!(put_back_in_order(&guest).len(), 5);
    // Keeps the destination connected until here.
    drop(destination);
}
