// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Warnings in the log about front ends that lack a feature.

use crate::machine::Machine;
use crate::raw::*;
use crate::rig::eventually;
use crate::rig::guest::{Daemon, USUAL};

/// The protocol feature of configuration changes.
const BACKEND_REQ: u64 = 1 << 5;
/// What the log says of a front end without that feature.
const WITHOUT: &str = "takes no configuration changes";

fn lines(daemon: &Daemon, with: &str) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains(with));
    lines.map(str::to_owned).collect()
}

fn negotiate(daemon: &Daemon, protocol: Option<u64>) -> Raw {
    let mut raw = Raw::connect(daemon);
    if let Some(protocol) = protocol {
        raw.send(SET_PROTOCOL_FEATURES, 1, &protocol.to_le_bytes(), &[]);
    }
    raw.send(SET_OWNER, 1, &[], &[]);
    raw.send(SET_FEATURES, 1, &USUAL.to_le_bytes(), &[]);
    assert_eq!(raw.ask(GET_FEATURES, &[]).len(), 8);
    raw
}

#[test]
fn the_log_says_once_what_does_not_work_without_configuration_changes() {
    let daemon = Daemon::start_with_log(&[]);
    drop(negotiate(&daemon, Some(PROTOCOL_FEATURES)));
    assert!(lines(&daemon, WITHOUT).is_empty());

    let mut raw = negotiate(&daemon, Some(PROTOCOL_FEATURES & !BACKEND_REQ));
    raw.send(
        SET_VRING_KICK,
        1,
        &0u64.to_le_bytes(),
        &[crate::machine::event()],
    );
    raw.send(
        SET_VRING_KICK,
        1,
        &1u64.to_le_bytes(),
        &[crate::machine::event()],
    );
    raw.ask(GET_FEATURES, &[]);
    let said = lines(&daemon, WITHOUT);
    assert_eq!(said.len(), 1, "{said:?}");
    for works in ["reporting", "statistics", "agent"] {
        assert!(said[0].contains(works), "{said:?}");
    }
    drop(raw);

    // A front end that negotiates no protocol features.
    let mut raw = negotiate(&daemon, None);
    assert_eq!(lines(&daemon, WITHOUT).len(), 1);
    raw.send(
        SET_VRING_KICK,
        1,
        &0u64.to_le_bytes(),
        &[crate::machine::event()],
    );
    raw.ask(GET_FEATURES, &[]);
    assert_eq!(lines(&daemon, WITHOUT).len(), 2);
}

#[test]
fn the_refusal_of_a_ring_that_is_too_long_names_the_option_that_shortens_it() {
    let daemon = Daemon::start_with_log(&[]);
    let mut machine = Machine::new(&daemon);
    let size = words(&[0, 32768]);
    assert_eq!(machine.raw.order(SET_VRING_NUM, &size, &[]), Some(1));
    let helps = |line: &String| line.contains("32768") && line.contains("max-queue-size=1024");
    assert!(
        lines(&daemon, "refused").iter().any(helps),
        "{}",
        daemon.log()
    );
    drop(machine);
    // A front end that ignores the refusal is disconnected.
    let mut machine = Machine::new(&daemon);
    machine.raw.send(SET_VRING_NUM, 1, &size, &[]);
    assert!(machine.raw.hangs_up());
    eventually("the reason", || {
        lines(&daemon, "connection was closed")
            .iter()
            .any(helps)
            .then_some(())
    });
}
