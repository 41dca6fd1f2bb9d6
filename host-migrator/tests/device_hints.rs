// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests the client of the control protocol with devices that follow the protocol and devices that do not. (The real
//! device is used in the workspace's own tests.)
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use host_migrator::{DeviceHints, HintError, HintSource, MigrationParams};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use software_guest::memory::Memory;
use software_guest::{Guest, migrate};
use spec::balloon::CommandId;
use spec::control::{
    EpochReport, HEADER_BYTES, Header, MAX_PAYLOAD, PageSet, Refusal, Reply, Request, VERSION,
};
use spec::hint_map::{HintBits, Tellers};

/// The device's answer to a request; `None` for silence.
type Answer = fn(Request) -> Option<Reply>;

/// A device that answers as told, and reports the requests and files that it gets.
struct Device {
    directory: tempfile::TempDir,
    requests: Receiver<(Request, Option<OwnedFd>)>,
}

impl Device {
    fn start(answer: Answer) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let (sender, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let sender = sender.clone();
                thread::spawn(move || serve(stream.unwrap(), answer, &sender));
            }
        });
        Self {
            directory,
            requests,
        }
    }

    fn connect(&self) -> Result<DeviceHints, HintError> {
        DeviceHints::connect(self.directory.path().join("control"))
    }

    fn asked(&self) -> Vec<Request> {
        self.requests
            .try_iter()
            .map(|(request, _)| request)
            .collect()
    }
}

fn serve(mut stream: UnixStream, answer: Answer, requests: &Sender<(Request, Option<OwnedFd>)>) {
    let mut bytes = [0; HEADER_BYTES];
    while let Some(fd) = receive(&stream, &mut bytes) {
        let header = Header::from_bytes(&bytes).unwrap();
        let mut payload = vec![0; header.length as usize];
        stream.read_exact(&mut payload).unwrap();
        let request = Request::decode(&header, &payload).unwrap();
        if requests.send((request, fd)).is_err() {
            return;
        }
        if let Some(reply) = answer(request) {
            let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
            let length = reply.encode(header.sequence, &mut frame);
            let _ = stream.write_all(&frame[..length]);
        }
    }
}

/// A header, and the file descriptor that came with it; `None` at the end.
fn receive(stream: &UnixStream, bytes: &mut [u8; HEADER_BYTES]) -> Option<Option<OwnedFd>> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(bytes)];
    let got = recvmsg(stream, &mut parts, &mut control, RecvFlags::WAITALL).ok()?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (got.bytes == HEADER_BYTES).then_some(fd)
}

fn polite(request: Request) -> Option<Reply> {
    Some(match request {
        Request::Hello { .. } => Reply::Hello {
            version: VERSION,
            features: 0,
        },
        Request::SetHintMap { .. } | Request::Done => Reply::Ok,
        Request::Open { .. } => Reply::Opened {
            command_id: CommandId::FIRST,
        },
        Request::Close { epoch } => Reply::Closed(EpochReport {
            epoch,
            ..EpochReport::default()
        }),
        Request::Statistics => Reply::Refused(Refusal::NoStatistics),
        Request::PageMap(_) => Reply::Refused(Refusal::Resources),
        _ => return None,
    })
}

/// Migrates a guest with the hints of such a device. Returns how the hints failed, if they did, and the requests.
fn migrate_with(answer: Answer) -> (Option<String>, Vec<Request>) {
    let device = Device::start(answer);
    let guest = Guest::new(Memory::new(100, 0));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    let mut source = guest.source();
    source.hints = Some(Box::new(device.connect().unwrap()));
    let outcome = migrate(source, MigrationParams::default());
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    assert_eq!(outcome.report().totals.pages_sent, 100);
    (outcome.report().hints.lost.clone(), device.asked())
}

#[test]
fn a_migration_asks_in_the_protocols_order() {
    let (lost, asked) = migrate_with(polite);
    assert_eq!(lost, None);
    assert!(matches!(
        asked[..],
        [
            Request::Hello { .. },
            Request::SetHintMap { .. },
            Request::Hello { .. },
            Request::PageMap(PageSet::Ballooned),
            Request::PageMap(PageSet::Reported),
            Request::Statistics,
            Request::Open { epoch: 1 },
            Request::Close { epoch: 1 },
            Request::Done
        ]
    ));
}

#[test]
fn the_map_that_the_device_gets_is_the_one_that_is_read() {
    let device = Device::start(polite);
    let mut hints = device.connect().unwrap();
    let driver_alone = Tellers {
        driver: true,
        agent: false,
    };
    hints.prepare(1000, driver_alone).unwrap();
    let (_, file) = device.requests.iter().nth(1).unwrap();
    let file = std::fs::File::from(file.unwrap());
    let mut not_asked = [0];
    file.read_at(&mut not_asked, 64).unwrap();
    assert_eq!(not_asked, [2], "only the agent is not asked");
    // Page 65 is bit 1 of the second word of a plane. The agent's plane follows the driver's.
    file.write_at(&[2], 4096 + 8).unwrap();
    file.write_at(&[6], 4096 + 16 * 8 + 8).unwrap();
    // The marks follow. Both words have the second, and all marks share the first bit of the summary after them.
    file.write_at(&[2], 4096 + 2 * 16 * 8).unwrap();
    file.write_at(&[1], 4096 + 2 * 16 * 8 + 8).unwrap();
    let told = HintBits {
        driver: 2,
        agent: 6,
    };
    assert_eq!(hints.load(1), told);
    assert_eq!((hints.load(0), hints.load(1 << 40)), Default::default());
    let mut taken = Vec::new();
    hints.take_all(&mut |index, told| taken.push((index, told)));
    assert_eq!(taken, [(1, told)]);
    assert_eq!(hints.load(1), HintBits::default());
}

#[test]
fn a_device_that_refuses_falls_silent_or_talks_nonsense_costs_only_the_hints() {
    let bad: [Answer; 5] = [
        |request| match request {
            Request::SetHintMap { .. } => Some(Reply::Refused(Refusal::HintMap)),
            other => polite(other),
        },
        |request| match request {
            Request::Open { .. } => Some(Reply::Refused(Refusal::NotNegotiated)),
            other => polite(other),
        },
        |request| polite(request).filter(|_| !matches!(request, Request::Open { .. })),
        |request| polite(request).filter(|_| !matches!(request, Request::Close { .. })),
        |request| match request {
            Request::Close { epoch } => polite(Request::Close { epoch: epoch + 1 }),
            other => polite(other),
        },
    ];
    for answer in bad {
        let (lost, _) = migrate_with(answer);
        assert!(lost.is_some());
    }
}

#[test]
fn a_late_answer_that_is_only_for_statistics_costs_no_hints() {
    let late: Answer = |request| {
        if matches!(request, Request::PageMap(PageSet::Ballooned)) {
            thread::sleep(Duration::from_millis(1500));
        }
        polite(request)
    };
    let never: Answer =
        |request| polite(request).filter(|_| !matches!(request, Request::PageMap(_)));
    for (answer, maps) in [(late, 2), (never, 1)] {
        let (lost, asked) = migrate_with(answer);
        assert_eq!(lost, None);
        assert!(asked.contains(&Request::Open { epoch: 1 }), "{asked:?}");
        let is_map = |request: &&Request| matches!(request, Request::PageMap(_));
        assert_eq!(asked.iter().filter(is_map).count(), maps);
    }
}

#[test]
fn a_device_of_another_version_and_one_that_is_not_there_are_errors() {
    let other = Device::start(|_| {
        Some(Reply::Hello {
            version: VERSION + 1,
            features: 0,
        })
    });
    assert!(matches!(other.connect(), Err(HintError::Protocol(_))));
    let nobody = tempfile::tempdir().unwrap();
    let result = DeviceHints::connect(nobody.path().join("control"));
    assert!(matches!(result, Err(HintError::Io(_))));
}
