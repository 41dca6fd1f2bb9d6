// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who is accepted as the guest's agent: where every process of the guest can connect, and where only root can.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::io::Write;
use std::process::Command;

use rig::agent::Agent;
use rig::eventually;
use rig::guest::{Daemon, Guest, USUAL};
use rig::migrator::Migrator;
use spec::agent::Ask;
use spec::agent::proof::{Challenge, Key};

const KEY: [u8; 32] = [7; 32];
/// The most connections without a proof that the device keeps.
const PLACES: usize = 32;

/// The answer to a challenge.
type Answer<'a> = dyn Fn(&Challenge) -> Vec<u8> + 'a;
/// How an agent connects, up to the device's greeting.
type Come = fn(&Daemon) -> Agent;

fn with_key() -> (Daemon, Guest, Migrator) {
    let daemon = Daemon::start_with_agent_key(&KEY);
    let guest = Guest::boot(&daemon, USUAL, 3);
    let migrator = Migrator::connect(&daemon.control());
    (daemon, guest, migrator)
}

/// An agent that has proved itself and whose greeting the device has received.
fn agent_of(daemon: &Daemon) -> Agent {
    let mut agent = Agent::prove(daemon, &KEY);
    agent.greet(0);
    agent
}

/// Lets `migrator` open epochs until `agent` is asked in one.
fn assert_is_served(agent: &mut Agent, migrator: &mut Migrator) {
    eventually("a request to the agent", || {
        let epoch = migrator.status().epochs + 1;
        migrator.open(epoch);
        let asked = agent.is_asked();
        migrator.close(epoch);
        asked.then_some(())
    });
    loop {
        match agent.asked() {
            Ask::Map { .. } => break,
            Ask::Hello => agent.hello(0),
            Ask::Stop => {}
        }
    }
}

/// Reads the requests that the agent already has, up to the challenge.
fn assert_is_asked_who_it_is(agent: &mut Agent) {
    while agent.asked() != Ask::Hello {}
}

fn assert_is_hung_up_on(stranger: &Agent) {
    eventually("the device to hang up", || {
        stranger.is_hung_up_on().then_some(())
    });
}

#[test]
fn a_process_without_the_key_is_ignored_even_if_it_comes_first() {
    let (daemon, _guest, mut migrator) = with_key();
    let mut stranger = Agent::connect_only(&daemon);
    stranger.challenged();
    stranger.hello(0);
    // There are few tags: the stranger tries all.
    for tag in 0..20 {
        stranger.map(tag, 0, 4096, &[u64::MAX; 64]);
    }
    let mut agent = agent_of(&daemon);
    assert_is_served(&mut agent, &mut migrator);
    assert_eq!(
        migrator.status().stale,
        0,
        "the device has read none of its maps"
    );
    assert!(migrator.hinted().is_empty());
    assert!(!stranger.is_asked(), "the device asks it nothing");
}

#[test]
fn only_the_proof_of_this_key_for_this_challenge_counts() {
    let (daemon, _guest, mut migrator) = with_key();
    let key = Key::new(&KEY).unwrap();
    let mut other = Agent::connect_only(&daemon);
    let overheard = key.prove(&other.challenged());
    let strangers: [&Answer<'_>; 4] = [
        &|challenge| {
            Key::new(&[8; 32])
                .unwrap()
                .prove(challenge)
                .to_frame()
                .into()
        },
        &|_| overheard.to_frame().into(),
        // Its own words, sent back.
        &|challenge| spec_testing::agent::frame(0x85, 0, &challenge.to_frame()[32..]),
        // A long text without a proof.
        &|_| vec![b'x'; 80 << 10],
    ];
    for answer in strangers {
        let mut stranger = Agent::connect_only(&daemon);
        let challenge = stranger.challenged();
        // The device may hang up before it has read everything.
        let _ = stranger.port.write_all(&answer(&challenge));
        assert_is_hung_up_on(&stranger);
    }
    // The overheard proof is valid on its own connection.
    other.send(&overheard.to_frame());
    other.greet(0);
    assert_is_served(&mut other, &mut migrator);
}

#[test]
fn silent_connections_are_limited_and_keep_no_agent_out() {
    let (daemon, _guest, mut migrator) = with_key();
    let before = daemon.descriptors();
    let strangers: Vec<Agent> = (0..3 * PLACES)
        .map(|_| Agent::connect_only(&daemon))
        .collect();
    // The agent connects after all of them, and is accepted.
    let mut agent = agent_of(&daemon);
    let open = daemon.descriptors() - before;
    assert!(open <= PLACES + 8, "{open} connections are open");
    assert_is_served(&mut agent, &mut migrator);
    for stranger in &strangers {
        assert_is_hung_up_on(stranger);
    }
    assert_is_served(&mut agent, &mut migrator);
}

#[test]
fn no_process_without_the_key_displaces_an_agent_in_its_answer() {
    let (daemon, _guest, mut migrator) = with_key();
    let mut agent = agent_of(&daemon);
    assert_is_served(&mut agent, &mut migrator);
    let epoch = migrator.status().epochs + 1;
    migrator.open(epoch);
    let tag = loop {
        if let Ask::Map { epoch, .. } = agent.asked() {
            break epoch;
        }
    };
    for _ in 0..2 * PLACES {
        let mut stranger = Agent::connect_only(&daemon);
        stranger.challenged();
        stranger.hello(0);
        stranger.end(tag);
    }
    agent.map(tag, 2048, 64, &[u64::MAX]);
    eventually("the map", || {
        (migrator.map.hinted_pages() == 64).then_some(())
    });
    assert!(!agent.is_hung_up_on());
}

/// A daemon of each kind, and how an agent connects to it up to the device's greeting.
fn both_kinds() -> [(Daemon, Come); 2] {
    [
        (Daemon::start_with_agent(), Agent::connect_only),
        (Daemon::start_with_agent_key(&KEY), |daemon| {
            Agent::prove(daemon, &KEY)
        }),
    ]
}

/// A guest of `daemon` with an agent that is asked.
fn served(daemon: &Daemon, come: Come) -> (Guest, Migrator, Agent) {
    let guest = Guest::boot(daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let mut agent = come(daemon);
    agent.greet(0);
    assert_is_served(&mut agent, &mut migrator);
    (guest, migrator, agent)
}

#[test]
fn a_second_agent_takes_the_place_of_one_that_is_silent() {
    for (daemon, come) in both_kinds() {
        let (_guest, mut migrator, mut silent) = served(&daemon, come);
        let mut second = come(&daemon);
        assert_is_asked_who_it_is(&mut silent);
        second.greet(0);
        assert_is_hung_up_on(&silent);
        assert_is_served(&mut second, &mut migrator);
    }
}

#[test]
fn a_second_agent_takes_the_place_of_one_that_goes() {
    for (daemon, come) in both_kinds() {
        let (_guest, mut migrator, mut first) = served(&daemon, come);
        let mut second = come(&daemon);
        assert_is_asked_who_it_is(&mut first);
        drop(first);
        second.greet(0);
        assert_is_served(&mut second, &mut migrator);
    }
}

#[test]
fn a_second_agent_is_hung_up_on_while_the_first_answers() {
    for (daemon, come) in both_kinds() {
        let (_guest, mut migrator, mut first) = served(&daemon, come);
        let second = come(&daemon);
        assert_is_asked_who_it_is(&mut first);
        first.hello(0);
        assert_is_hung_up_on(&second);
        assert_is_served(&mut first, &mut migrator);
    }
}

#[test]
fn a_device_without_a_way_to_know_its_agent_does_not_start_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    let said = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_vhost-device-balloon"))
            .arg("--socket-path")
            .arg(path("vmm"))
            .arg("--agent-socket")
            .arg(path("agent"))
            .args(flags)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!path("vmm").exists() && !path("agent").exists());
        String::from_utf8(output.stderr).unwrap()
    };
    for flags in [&[][..], &["--agent-transport", "vsock"]] {
        let said = said(flags);
        assert!(said.contains("--agent-key FILE"), "{said}");
        assert!(said.contains("--agent-transport console"), "{said}");
    }
    let key = path("key");
    std::fs::write(&key, [7; 16]).unwrap();
    let said = said(&["--agent-key", key.to_str().unwrap()]);
    assert!(
        said.contains("--agent-key") && said.contains("key"),
        "{said}"
    );
}
