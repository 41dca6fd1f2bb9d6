// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Honest and hostile messages of the guest's agent, and their effects.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::io::Write;

use rig::agent::Agent;
use rig::eventually;
use rig::guest::{Daemon, Guest, PAGES, USUAL, VERSION_1};
use rig::migrator::Migrator;
use rig::person::Person;
use rig::queue::Buffer;
use spec::agent::{Answer, Ask, Settings};
use spec::balloon::CommandId;
use spec::control::{Refusal, Reply, Request};
use spec::hint_map::{HintPhase, Tellers};

/// Where free pages lie in these tests, away from the queues: 8 MiB.
const FREE: u64 = 2048;
/// Pages of the first region; the second begins at twice as many.
const LOW: u64 = 4096;
/// Every second page.
const FRAGMENTED: u64 = 0x5555_5555_5555_5555;

/// The tag of the request that the agent gets in `epoch`.
fn asked_in(epoch: u64, agent: &mut Agent) -> u64 {
    match agent.asked() {
        Ask::Map { epoch: tag, first } => {
            assert_eq!(first, epoch == 1);
            tag
        }
        other => panic!("{other:?}"),
    }
}

/// A guest with a driver and an agent, and its migrator. The device has received the agent's greeting.
fn with_agent(flags: u32) -> (Daemon, Guest, Migrator, Agent) {
    let daemon = Daemon::start_with_agent();
    let guest = Guest::boot(&daemon, USUAL, 3);
    let migrator = Migrator::connect(&daemon.control());
    let agent = Agent::connect(&daemon, flags);
    (daemon, guest, migrator, agent)
}

/// Opens epochs until the agent is asked in one, because its Hello may still be on its way. Returns the epoch, and the
/// tag for the agent's frames.
fn open_and_ask(migrator: &mut Migrator, agent: &mut Agent) -> (u64, u64) {
    let epoch = eventually("a request to the agent", || {
        let epoch = migrator.status().epochs + 1;
        migrator.open(epoch);
        let asked = agent.is_asked();
        if !asked {
            migrator.close(epoch);
        }
        asked.then_some(epoch)
    });
    (epoch, asked_in(epoch, agent))
}

#[test]
fn single_pages_that_no_driver_can_hint_get_into_the_map() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    assert_eq!(migrator.map.phase(), HintPhase::Requested);
    agent.map(tag, FREE, 128, &[FRAGMENTED; 2]);
    eventually("the map", || {
        (migrator.map.hinted_pages() == 64).then_some(())
    });
    assert_eq!(migrator.map.phase(), HintPhase::Running);
    agent.end(tag);
    // The driver was not asked.
    eventually("the end", || {
        (migrator.map.phase() == HintPhase::Finished).then_some(())
    });
    assert_eq!(id_for_the_driver(&mut migrator), None);
    let report = migrator.close(epoch);
    assert_eq!((report.pages, report.agent_pages), (64, 64));
    let expected: Vec<(u64, u64)> = (0..64).map(|i| (FREE + 2 * i, 1)).collect();
    assert_eq!(migrator.hinted(), expected);
}

/// The command id in the driver's configuration space, if the driver is asked.
fn id_for_the_driver(migrator: &mut Migrator) -> Option<CommandId> {
    CommandId::new(migrator.status().command_id)
}

#[test]
fn an_agent_that_falls_silent_is_joined_by_the_driver_and_each_page_counts_once() {
    let (_daemon, mut guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    assert_eq!(id_for_the_driver(&mut migrator), None);
    let id = eventually("the driver's turn", || id_for_the_driver(&mut migrator));
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(FREE * 4096, 64 * 4096)]);
    // The agent was only slow.
    agent.map(tag, FREE, 128, &[u64::MAX; 2]);
    agent.end(tag);
    eventually("the map", || {
        (migrator.map.hinted_pages() == 128).then_some(())
    });
    let report = migrator.close(epoch);
    assert_eq!((report.pages, report.agent_pages), (128, 64));
    assert_eq!(migrator.hinted(), [(FREE, 128)]);
}

/// Dropping caches and compacting memory are worthwhile only before a migration.
#[test]
fn a_persons_round_is_not_the_first_of_a_migration() {
    let daemon = Daemon::start_with_agent();
    let _guest = Guest::boot(&daemon, USUAL, 3);
    let mut person = Person::connect(&daemon.control());
    let mut agent = Agent::connect(&daemon, 0);
    // A map without a request: once it is counted, the device has read the greeting.
    agent.map(1, FREE, 64, &[u64::MAX]);
    eventually("the map", || (person.status().stale == 1).then_some(()));
    let is_first = |agent: &mut Agent| match agent.asked() {
        Ask::Map { first, .. } => first,
        other => panic!("{other:?}"),
    };
    person.hints(Request::HintStart);
    assert!(!is_first(&mut agent), "in a person's round");
    person.hints(Request::HintStop);
    assert_eq!(agent.asked(), Ask::Stop);
    let mut migrator = Migrator::connect(&daemon.control());
    migrator.open(1);
    assert!(is_first(&mut agent), "in a migration");
}

#[test]
fn an_epoch_is_finished_when_the_agent_has_ended() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (_, tag) = open_and_ask(&mut migrator, &mut agent);
    agent.map(tag, 0, 128, &[0, u64::MAX]);
    eventually("the mark", || {
        (migrator.map.answered() == 128).then_some(())
    });
    agent.end(tag);
    eventually("the end", || {
        (migrator.map.answered() == u64::MAX).then_some(())
    });
}

#[test]
fn the_migrator_chooses_whether_the_driver_or_the_agent_is_asked() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, _) = open_and_ask(&mut migrator, &mut agent);
    migrator.close(epoch);
    assert_eq!(agent.asked(), Ask::Stop);
    let [driver_alone, agent_alone] = [true, false].map(|driver| Tellers {
        driver,
        agent: !driver,
    });

    migrator.map.ask(agent_alone);
    migrator.open(epoch + 1);
    let tag = asked_in(epoch + 1, &mut agent);
    agent.map(tag, 0, 128, &[0, u64::MAX]);
    eventually("the mark", || {
        (migrator.map.answered() == 128).then_some(())
    });
    agent.end(tag);
    // The driver never answers, and the device does not wait for it.
    eventually("the end", || {
        (migrator.map.phase() == HintPhase::Finished).then_some(())
    });
    assert_eq!(migrator.close(epoch + 1).agent_pages, 64);

    migrator.map.ask(driver_alone);
    migrator.open(epoch + 2);
    assert_eq!(migrator.map.phase(), HintPhase::Requested);
    assert_eq!(migrator.map.answered(), 0);
    agent.map(tag, 128, 64, &[u64::MAX]);
    assert_eq!(migrator.close(epoch + 2).agent_pages, 0);
}

#[test]
fn the_driver_is_asked_when_the_agent_cannot_answer_or_cannot_be_believed() {
    let failures: [fn(&mut Agent, u64); 2] = [
        |agent, tag| agent.say(Answer::FAILED, tag, &[13, 0, 0, 0]),
        |agent, tag| {
            for _ in 0..=PAGES / LOW {
                agent.map(tag, FREE, LOW, &[u64::MAX]);
            }
        },
    ];
    for fail in failures {
        let (_daemon, mut guest, mut migrator, mut agent) = with_agent(0);
        let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
        fail(&mut agent, tag);
        let id = eventually("the driver's turn", || id_for_the_driver(&mut migrator));
        guest.start_round(id);
        guest
            .hints
            .send(&[Buffer::In((FREE + 64) * 4096, 64 * 4096)]);
        eventually("its hints", || {
            (migrator.map.hinted_pages() >= 64).then_some(())
        });
        assert!(migrator.close(epoch).hints > 0);
    }
}

#[test]
fn a_guest_whose_driver_has_no_hints_migrates_with_its_agent_alone() {
    let daemon = Daemon::start_with_agent();
    let _guest = Guest::negotiate(&daemon, VERSION_1 | rig::guest::PROTOCOL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(migrator.open_refused(1), Refusal::NotNegotiated);
    let mut agent = Agent::connect(&daemon, Settings::INIT_ON_FREE);
    eventually("an epoch", || {
        let reply = migrator.ask(Request::Open { epoch: 1 });
        matches!(reply, Reply::Opened { .. }).then_some(())
    });
    let tag = asked_in(1, &mut agent);
    agent.map(tag, FREE, 64, &[u64::MAX]);
    agent.end(tag);
    eventually("the end", || {
        (migrator.map.phase() == HintPhase::Finished).then_some(())
    });
    assert_eq!(migrator.close(1).agent_pages, 64);
}

#[test]
fn runs_are_cut_to_guest_memory() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    // From the end of the first region over the hole into the second, and far beyond all memory.
    agent.map(tag, LOW - 1, LOW + 2, &vec![u64::MAX; 65]);
    agent.map(tag, u64::MAX - 70000, 64, &[u64::MAX]);
    agent.map(tag, PAGES - 1, 64, &[u64::MAX]);
    agent.end(tag);
    eventually("the map", || {
        (migrator.map.hinted_pages() == 3).then_some(())
    });
    migrator.close(epoch);
    assert_eq!(
        migrator.hinted(),
        [(LOW - 1, 1), (2 * LOW, 1), (PAGES - 1, 1)]
    );
}

#[test]
fn maps_of_another_epoch_and_after_the_close_are_dropped() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    for wrong in [0, epoch, tag - 1, tag + 1, u64::MAX] {
        agent.map(wrong, FREE, 64, &[u64::MAX]);
    }
    eventually("the wrong maps", || {
        (migrator.status().stale == 5).then_some(())
    });
    assert_eq!(migrator.close(epoch).pages, 0);
    assert_eq!(agent.asked(), Ask::Stop);
    agent.map(tag, FREE, 64, &[u64::MAX]);
    eventually("the late map", || {
        (migrator.status().stale == 6).then_some(())
    });
    assert!(migrator.hinted().is_empty());
}

#[test]
fn a_map_of_an_earlier_migration_counts_for_nothing_in_the_next() {
    let (daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, old) = open_and_ask(&mut migrator, &mut agent);
    migrator.done();
    assert_eq!(agent.asked(), Ask::Stop);
    drop(migrator);

    let mut migrator = Migrator::connect(&daemon.control());
    migrator.open(epoch);
    let new = asked_in(epoch, &mut agent);
    agent.map(old, FREE, 64, &[u64::MAX]);
    agent.map(new, FREE + 64, 64, &[u64::MAX]);
    eventually("the map of this one", || {
        (migrator.map.hinted_pages() >= 64).then_some(())
    });
    migrator.close(epoch);
    assert_eq!(migrator.hinted(), [(FREE + 64, 64)]);
}

#[test]
fn maps_that_come_after_the_agents_end_are_dropped() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    agent.end(tag);
    agent.map(tag, FREE, 64, &[u64::MAX]);
    eventually("the late map", || {
        (migrator.status().stale == 1).then_some(())
    });
    assert_eq!(migrator.close(epoch).pages, 0);
}

#[test]
fn an_agent_that_repeats_its_pages_is_cut_off() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    let often = PAGES / LOW + 5;
    for _ in 0..often {
        agent.map(tag, FREE, LOW, &[u64::MAX]);
    }
    let stale = often - PAGES / LOW;
    eventually("the surplus", || {
        (migrator.status().stale == stale).then_some(())
    });
    assert_eq!(migrator.close(epoch).pages, 64);
}

#[test]
fn a_guest_that_checks_its_free_pages_is_not_asked() {
    for flags in [Settings::POISON, Settings::UNKNOWN] {
        let (_daemon, _guest, mut migrator, mut agent) = with_agent(flags);
        // A map without a request: once it is counted, the device has read the greeting.
        agent.map(1, FREE, 64, &[u64::MAX]);
        eventually("the map", || (migrator.status().stale == 1).then_some(()));
        migrator.open(1);
        agent.map(1, FREE, 64, &[u64::MAX]);
        eventually("the other map", || {
            (migrator.status().stale == 2).then_some(())
        });
        assert_eq!(migrator.close(1).pages, 0);
        assert!(!agent.is_asked());
    }
}

#[test]
fn the_map_of_an_agent_that_dies_in_its_answer_is_kept_and_another_may_connect() {
    let (daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    agent.map(tag, FREE, 64, &[u64::MAX]);
    eventually("the map", || {
        (migrator.map.hinted_pages() == 64).then_some(())
    });
    // Half a frame.
    agent.port.write_all(b"LAGT\x82").unwrap();
    drop(agent);
    eventually("its end", || {
        (migrator.map.phase() == HintPhase::Requested).then_some(())
    });
    assert_eq!(migrator.close(epoch).pages, 64);
    let mut agent = Agent::connect(&daemon, 0);
    open_and_ask(&mut migrator, &mut agent);
}

#[test]
fn noise_floods_and_invalid_answers_do_no_harm() {
    let (mut daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (epoch, tag) = open_and_ask(&mut migrator, &mut agent);
    agent.port.write_all(&[b'L'; 50_000]).unwrap();
    for kind in [0, 1, 2, 3, 0x80, 0x85, u16::MAX] {
        agent.say(kind, tag, &[0xff; 24]);
    }
    agent.say(Answer::MAP, tag, &[0; 15]);
    agent.say(Answer::END, tag, &[]);
    // The migrator is served while the device reads the flood.
    for _ in 0..200 {
        agent.say(Answer::MAP, 0, &[]);
    }
    assert_eq!(migrator.status().epoch, epoch);
    agent.map(tag, FREE, 64, &[u64::MAX]);
    eventually("the map", || {
        (migrator.map.hinted_pages() == 64).then_some(())
    });
    assert!(daemon.lives());
}

#[test]
fn an_agent_that_reads_nothing_is_hung_up_on_and_holds_up_no_epoch() {
    let (_daemon, _guest, mut migrator, mut agent) = with_agent(0);
    let (first, _) = open_and_ask(&mut migrator, &mut agent);
    migrator.close(first);
    let hung_up = (first + 1..first + 100_000).any(|epoch| {
        migrator.open(epoch);
        migrator.close(epoch);
        agent.is_hung_up_on()
    });
    assert!(hung_up, "its port takes requests without end");
}
