// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rounds of hints that people start, and how they give way to migrators.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use rig::guest::{Daemon, Guest, HIGH, LOW, MIB, PAGES, POISON, USUAL};
use rig::migrator::{Migrator, map_file};
use rig::person::Person;
use rig::queue::Buffer;
use spec::PageRange;
use spec::balloon::{Command, CommandId};
use spec::control::{HintHolder, PageSet, Refusal, Reply, Request, RoundEnd};
use spec::hint_map::HintPhase;

fn guest_and_person() -> (Daemon, Guest, Person) {
    let daemon = Daemon::start(&[]);
    let guest = Guest::boot(&daemon, USUAL, 3);
    let person = Person::connect(&daemon.control());
    (daemon, guest, person)
}

/// Starts a round for the person and has the guest answer and hint 1 MiB at 8 MiB.
fn in_a_round(guest: &mut Guest, person: &mut Person) {
    let state = person.hints(Request::HintStart);
    assert_eq!(state.phase, HintPhase::Requested);
    let id = guest.wait_for_change().free_page_hint_cmd_id;
    assert_eq!(id, state.command_id);
    guest.start_round(CommandId::new(id).unwrap());
    guest.hints.send(&[Buffer::In(8 * MIB, 1 << 20)]);
}

fn regions() -> [PageRange; 2] {
    [LOW, HIGH].map(|(start, bytes)| PageRange::inside(start, bytes).unwrap())
}

#[test]
fn a_person_has_the_guest_hint_and_looks_at_the_map() {
    let (_daemon, mut guest, mut person) = guest_and_person();
    let idle = person.hints(Request::HintState);
    assert_eq!(
        (idle.phase, idle.holder),
        (HintPhase::Closed, HintHolder::Nobody)
    );
    in_a_round(&mut guest, &mut person);
    guest.hints.send(&[Buffer::In(40 * MIB, 8192)]);
    let running = person.hints(Request::HintState);
    assert_eq!(
        (running.phase, running.holder),
        (HintPhase::Running, HintHolder::Person)
    );
    let hinted = [(8 * MIB / 4096, 256), (40 * MIB / 4096, 2)];
    let (runs, memory) = person.page_map(PageSet::Hinted);
    assert_eq!((&runs[..], &memory[..]), (&hinted[..], &regions()[..]));

    let stop = guest.hints.command(&[0; 4]);
    guest.hints.send(&[stop]);
    let finished = person.hints(Request::HintState);
    assert_eq!(
        (finished.phase, finished.ended),
        (HintPhase::Finished, RoundEnd::None)
    );
    assert!(guest.is_left_alone(), "the guest is not told DONE yet");

    let done = person.hints(Request::HintStop);
    assert_eq!(
        (done.phase, done.ended),
        (HintPhase::Done, RoundEnd::Stopped)
    );
    assert_eq!((done.hints, done.pages), (2, 258));
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
    assert!(guest.is_left_alone(), "the guest is told DONE once");
    assert_eq!(
        person.page_map(PageSet::Hinted).0,
        hinted,
        "the map is kept after the round"
    );

    in_a_round(&mut guest, &mut person);
    assert_eq!(
        person.page_map(PageSet::Hinted).0,
        hinted[..1],
        "a new round has a new map"
    );
}

#[test]
fn a_round_whose_client_was_killed_ends_by_itself_and_the_guest_gets_its_memory_back() {
    let daemon = Daemon::start(&["--once", "--hint-round-limit", "1"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut person = Person::connect(&daemon.control());
    person.hints(Request::HintStart);
    drop(person);
    while guest.wait_for_change().free_page_hint_cmd_id != Command::DONE {}
    let state = Person::connect(&daemon.control()).hints(Request::HintState);
    assert_eq!(
        (state.phase, state.holder, state.ended),
        (HintPhase::Done, HintHolder::Person, RoundEnd::Expired)
    );
}

#[test]
fn a_round_outlives_the_connection_that_started_it() {
    let (daemon, mut guest, mut person) = guest_and_person();
    in_a_round(&mut guest, &mut person);
    drop(person);
    let mut another = Person::connect(&daemon.control());
    guest.hints.send(&[Buffer::In(9 * MIB, 4096)]);
    assert_eq!(another.hints(Request::HintState).pages, 257);
    assert_eq!(another.refused(Request::HintStart), Refusal::RoundOpen);
    assert!(guest.is_left_alone());
    assert_eq!(another.hints(Request::HintStop).pages, 257);
    assert_eq!(another.refused(Request::HintStop), Refusal::NoRound);
}

#[test]
fn hints_queued_before_the_round_is_stopped_count() {
    let (_daemon, mut guest, mut person) = guest_and_person();
    in_a_round(&mut guest, &mut person);
    guest.hints.add(&[Buffer::In(10 * MIB, 4096)]);
    assert_eq!(person.hints(Request::HintStop).pages, 257);
    guest.hints.send(&[Buffer::In(11 * MIB, 4096)]);
    assert_eq!(
        person
            .page_map(PageSet::Hinted)
            .0
            .iter()
            .map(|run| run.1)
            .sum::<u64>(),
        257
    );
}

#[test]
fn a_person_is_refused_while_a_migrator_holds_the_hints() {
    let (daemon, mut guest, mut person) = guest_and_person();
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(person.refused(Request::HintStart), Refusal::Migrating);
    let id = migrator.open(1);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, id.get());
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(8 * MIB, 4096)]);
    for request in [Request::HintStart, Request::HintStop] {
        assert_eq!(person.refused(request), Refusal::Migrating);
    }
    let state = person.hints(Request::HintState);
    assert_eq!(
        (state.phase, state.holder),
        (HintPhase::Running, HintHolder::Migrator)
    );
    let (runs, _) = person.page_map(PageSet::Hinted);
    assert_eq!(
        runs,
        [(8 * MIB / 4096, 1)],
        "a person may look at the migrator's map"
    );
    assert_eq!(migrator.close(1).pages, 1, "the epoch runs undisturbed");
    migrator.done();
    assert_eq!(
        person.refused(Request::PageMap(PageSet::Hinted)),
        Refusal::NoMap
    );
    assert_eq!(person.hints(Request::HintStart).holder, HintHolder::Person);
}

#[test]
fn a_migrator_ends_the_round_of_a_person() {
    let (daemon, mut guest, mut person) = guest_and_person();
    in_a_round(&mut guest, &mut person);
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
    let state = person.hints(Request::HintState);
    assert_eq!(
        (state.phase, state.holder),
        (HintPhase::Done, HintHolder::Migrator)
    );
    assert_eq!((state.ended, state.pages), (RoundEnd::Migrator, 256));
    guest.hints.send(&[Buffer::In(12 * MIB, 4096)]);
    let id = migrator.open(1);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, id.get());
    assert!(id.get() > state.command_id);
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(13 * MIB, 4096)]);
    assert_eq!(migrator.close(1).pages, 1);
    assert_eq!(
        migrator.hinted(),
        [(13 * MIB / 4096, 1)],
        "the migrator gets no hint of the person's round"
    );
}

#[test]
fn an_invalid_hint_map_leaves_a_persons_round_alone() {
    let (daemon, mut guest, mut person) = guest_and_person();
    in_a_round(&mut guest, &mut person);
    let mut migrator = Person::connect(&daemon.control());
    let (file, bytes, _) = map_file(PAGES);
    let reply = migrator.ask_with(Request::SetHintMap { bytes: bytes - 8 }, &[file]);
    assert_eq!(reply, Reply::Refused(Refusal::HintMap));
    for request in [Request::Open { epoch: 1 }, Request::Close { epoch: 1 }] {
        migrator.refused(request);
    }
    assert_eq!(migrator.ask(Request::Done), Reply::Ok);
    drop(migrator);
    assert_eq!(person.hints(Request::HintState).phase, HintPhase::Running);
    assert!(guest.is_left_alone());
}

#[test]
fn one_migrator_is_served_at_a_time_and_the_next_after_it() {
    let (daemon, guest, mut second) = guest_and_person();
    let mut first = Migrator::connect(&daemon.control());
    first.open(1);
    let (file, bytes, _) = map_file(PAGES);
    let file = || file.try_clone().unwrap();
    let reply = second.ask_with(Request::SetHintMap { bytes }, &[file()]);
    assert_eq!(reply, Reply::Refused(Refusal::Migrating));
    for request in [
        Request::Open { epoch: 2 },
        Request::Close { epoch: 1 },
        Request::Done,
    ] {
        assert_eq!(second.refused(request), Refusal::Migrating);
    }
    assert_eq!(first.close(1).epoch, 1);
    drop(first);
    rig::eventually("the first migrator's end", || {
        match second.ask_with(Request::SetHintMap { bytes }, &[file()]) {
            Reply::Ok => Some(()),
            Reply::Refused(Refusal::Migrating) => None,
            other => panic!("{other:?}"),
        }
    });
    second.open(1);
    drop(guest);
}

#[test]
fn a_guest_that_is_reset_ends_the_round_and_the_next_can_start() {
    let (_daemon, mut guest, mut person) = guest_and_person();
    in_a_round(&mut guest, &mut person);
    use vhost::vhost_user::VhostUserFrontend;
    guest.front_end.reset_device().unwrap();
    let state = person.hints(Request::HintState);
    assert_eq!(
        (state.phase, state.ended),
        (HintPhase::Closed, RoundEnd::Reset)
    );
    assert_eq!(state.pages, 256);
    assert_eq!(person.refused(Request::HintStop), Refusal::NoRound);
    assert_eq!(person.refused(Request::HintStart), Refusal::NotNegotiated);
}

#[test]
fn a_driver_that_is_loaded_again_ends_the_round_of_the_one_before() {
    let (_daemon, mut guest, mut person) = guest_and_person();
    in_a_round(&mut guest, &mut person);
    guest.hints.stop(&guest.front_end);
    guest.hints = guest.queue(3);
    guest.hints.start(&mut guest.front_end, 0);
    guest.hints.send(&[Buffer::In(9 * MIB, 4096)]);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
    let state = person.hints(Request::HintState);
    assert_eq!(
        (state.phase, state.ended, state.pages),
        (HintPhase::Done, RoundEnd::Reset, 256)
    );
    in_a_round(&mut guest, &mut person);
}

#[test]
fn a_round_of_a_guest_that_cannot_be_asked_is_refused_and_the_last_map_stays() {
    let daemon = Daemon::start(&[]);
    let mut person = Person::connect(&daemon.control());
    assert_eq!(person.refused(Request::HintStart), Refusal::NotNegotiated);
    assert_eq!(
        person.refused(Request::PageMap(PageSet::Hinted)),
        Refusal::NoMap
    );
    let mut guest = Guest::boot(&daemon, USUAL | POISON, 3);
    in_a_round(&mut guest, &mut person);
    person.hints(Request::HintStop);
    guest.wait_for_change();
    use vhost::VhostBackend;
    guest.hints.stop(&guest.front_end);
    assert_eq!(person.refused(Request::HintStart), Refusal::Stopped);
    let state = person.hints(Request::HintState);
    assert_eq!((state.phase, state.pages), (HintPhase::Done, 256));
    assert_eq!(person.page_map(PageSet::Hinted).0, [(8 * MIB / 4096, 256)]);
    let _ = guest.front_end.get_features().unwrap();
}
