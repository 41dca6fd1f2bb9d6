// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection is cut, or stalls for longer than a side waits for its peer, at every step of the stream. Then `lacuna
//! status` on both sides says who owns the guest, and the guest goes on there with all its memory.

use std::thread;
use std::time::{Duration, Instant};

use host_migrator::Owner;
use lacuna::compare::Host;
use lacuna::control::{Client, ClientError, Command, QuitArguments};
use lacuna::machine::{MachineState, Status};
use spec::stream::{SECTION_HEADER_BYTES, SectionKind};

use crate::lab::unix_wire;
use crate::lab::wire::{Fault, faulty};
use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, end_of_migration, skipped_without_kvm, status, tell,
    whole_pass,
};

/// Longer than a side waits for a silent peer.
const LONG: Duration = Duration::from_secs(33);

/// Every step of the stream, by its first section of this kind.
pub(crate) const STEPS: [SectionKind; 11] = [
    SectionKind::Layout,
    SectionKind::Description,
    SectionKind::Accept,
    SectionKind::Pages,
    SectionKind::RoundEnd,
    SectionKind::RoundReceived,
    SectionKind::MachineState,
    SectionKind::Commit,
    SectionKind::Ready,
    SectionKind::HandOver,
    SectionKind::Running,
];

/// The same for a guest that goes with its memory.
const LOCAL_STEPS: [SectionKind; 10] = [
    SectionKind::Layout,
    SectionKind::Description,
    SectionKind::Accept,
    SectionKind::Memory,
    SectionKind::Mapped,
    SectionKind::MachineState,
    SectionKind::Commit,
    SectionKind::Ready,
    SectionKind::HandOver,
    SectionKind::Running,
];

/// How the guest is migrated.
#[derive(Clone, Copy, Debug)]
enum By {
    /// In pages, over TCP.
    Pages,
    /// With its memory, over a unix socket.
    Memory,
}

impl By {
    /// Begins to migrate, over a wire with `fault` at `kind`. Returns the destination.
    fn begin(self, lab: &Lab, source: &Host, kind: SectionKind, fault: Fault) -> Host {
        match self {
            Self::Pages => {
                let (destination, uri) = lab.receiving("destination", false);
                Migration::on_one_connection().begin(source, &faulty(&uri, kind, fault));
                destination
            }
            Self::Memory => {
                let at = lab.unix("stream");
                let (destination, uri) = lab.receiving_at("destination", &at, false);
                let local = Migration {
                    local: true,
                    ..Migration::default()
                };
                let wire = unix_wire::faulty(&uri, lab.folder(), kind, fault);
                local.begin(source, &wire);
                destination
            }
        }
    }
}

fn guest() -> BareGuest {
    BareGuest {
        memory: "64M",
        in_use: "8M",
        freed: "32M",
        dirty_rate: "1M",
        ..BareGuest::default()
    }
}

/// The destination's status, if it is still there. Waits until the status no longer changes by itself.
fn settled(destination: &mut Host) -> Option<Status> {
    let end = Instant::now() + PATIENCE;
    loop {
        let asked = destination
            .client()
            .map_err(|_| ())
            .and_then(|mut client: Client| client.ask::<Status>(&Command::Status).map_err(|_| ()));
        let Ok(status) = asked else {
            return None;
        };
        // A destination that has not accepted a source goes on waiting.
        if status.machine != MachineState::Incoming || status.ownership.number == 0 {
            return Some(status);
        }
        assert!(Instant::now() < end, "{status:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The reason for which `host` refuses `command`.
fn refused(host: &Host, command: &Command) -> String {
    let mut client = host.client().expect("the machine answers");
    match client.tell(command) {
        Err(ClientError::Refused(why)) => why,
        other => panic!("{command:?} was not refused: {other:?}"),
    }
}

/// Gives up the guest that `host` holds.
fn end_guest(host: &Host) {
    let even_so = QuitArguments { end_guest: true };
    tell(host, &Command::Quit(Some(even_so)));
}

/// Checks that the guest runs on `host` and that all its memory is right.
fn goes_on(host: &mut Host, place: &str) {
    if status(host).machine == MachineState::Held {
        tell(host, &Command::Cont);
    }
    assert_eq!(status(host).machine, MachineState::Running, "{place}");
    assert_eq!(status(host).ownership.owner, Owner::Here, "{place}");
    let guest = whole_pass(host);
    assert_eq!((guest.wrong, guest.failure), (0, None), "{place}");
}

/// A migration with `fault` at `kind`. An operator then does what `lacuna status` on both sides calls for. If both sides are
/// undecided, `for_source` says for which side the operator decides.
fn the_guest_goes_on(by: By, kind: SectionKind, fault: Fault, for_source: bool) {
    let place = format!("{fault:?} at {kind:?}, by {by:?}");
    let lab = Lab::new(guest());
    let mut source = lab.running("source");
    let mut destination = by.begin(&lab, &source, kind, fault);
    let ended = end_of_migration(&mut source).unwrap();
    let here = status(&source).ownership;
    // A destination whose source has gone may still wait for it. It gives the guest up, or holds it, by itself.
    let there = settled(&mut destination).map(|status| status.ownership);
    println!("{place}: {:?}, {here:?}, {there:?}", ended.status);
    let there_owner = there.map(|there| there.owner);
    match (here.owner, there_owner) {
        (Owner::Here, Some(Owner::Here)) => panic!("{place}: two owners"),
        (Owner::Here, there) => {
            goes_on(&mut source, &place);
            if there == Some(Owner::Undecided) {
                let why = refused(&destination, &Command::Cont);
                assert!(why.contains("--destination-owns"), "{why}");
                assert_ne!(refused(&destination, &Command::Quit(None)), "");
                end_guest(&destination);
            }
            let why = refused(&source, &Command::SourceOwns);
            assert!(why.contains("nothing to decide"), "{why}");
        }
        (Owner::There | Owner::Undecided, Some(Owner::Here)) => {
            goes_on(&mut destination, &place);
            let why = refused(&destination, &Command::DestinationOwns);
            assert!(why.contains("nothing to decide"), "{why}");
        }
        (Owner::Undecided, Some(Owner::Undecided)) => {
            assert_eq!(Some(here.session), there.map(|there| there.session));
            assert_eq!(status(&source).machine, MachineState::Undecided);
            let why = refused(&source, &Command::Resume);
            assert!(why.contains("--source-owns"), "{why}");
            if for_source {
                end_guest(&destination);
                tell(&source, &Command::SourceOwns);
                goes_on(&mut source, &place);
            } else {
                tell(&destination, &Command::DestinationOwns);
                goes_on(&mut destination, &place);
            }
        }
        nobody => panic!("{place}: nobody has the guest: {nobody:?}"),
    }
}

#[test]
fn a_connection_that_is_cut_at_any_step_leaves_the_guest_with_an_owner_that_status_shows() {
    if skipped_without_kvm("cut at every step") {
        return;
    }
    for kind in STEPS {
        for after in [0, SECTION_HEADER_BYTES / 2] {
            the_guest_goes_on(By::Pages, kind, Fault::Cut(after), after == 0);
        }
    }
}

#[test]
fn a_local_hand_over_that_is_cut_at_any_step_leaves_the_guest_with_an_owner_that_status_shows() {
    if skipped_without_kvm("local, cut at every step") {
        return;
    }
    for kind in LOCAL_STEPS {
        for after in [0, SECTION_HEADER_BYTES / 2] {
            the_guest_goes_on(By::Memory, kind, Fault::Cut(after), after == 0);
        }
    }
    // Between the section and the descriptors.
    let fault = Fault::Cut(SECTION_HEADER_BYTES);
    the_guest_goes_on(By::Memory, SectionKind::Memory, fault, true);
}

#[test]
fn a_connection_that_stalls_at_any_step_leaves_the_guest_with_an_owner_that_status_shows() {
    if skipped_without_kvm("stalled at every step") {
        return;
    }
    // All at once, because each waits most of the time.
    let stalls = STEPS.map(|kind| {
        thread::spawn(move || {
            let for_source = kind == SectionKind::HandOver;
            the_guest_goes_on(By::Pages, kind, Fault::Stall(LONG), for_source)
        })
    });
    for stall in stalls {
        stall.join().expect("the guest goes on");
    }
}

#[test]
fn a_local_hand_over_that_stalls_leaves_the_guest_with_an_owner_that_status_shows() {
    if skipped_without_kvm("local, stalled") {
        return;
    }
    let steps = [
        SectionKind::Memory,
        SectionKind::Mapped,
        SectionKind::Commit,
        SectionKind::HandOver,
        SectionKind::Running,
    ];
    let stalls = steps.map(|kind| {
        thread::spawn(move || {
            let for_source = kind == SectionKind::HandOver;
            the_guest_goes_on(By::Memory, kind, Fault::Stall(LONG), for_source)
        })
    });
    for stall in stalls {
        stall.join().expect("the guest goes on");
    }
}
