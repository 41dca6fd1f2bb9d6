// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest moves over sockets that the commands were started with.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use lacuna::args::GuestKind;
use lacuna::compare::{Host, ask_oracle};
use lacuna::machine::MachineState;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::lab::{BareGuest, Lab, PATIENCE, command, release_and_check, skipped_without_kvm};

fn lab() -> Lab {
    Lab::new(BareGuest {
        in_use: "32M",
        freed: "32M",
        memory: "128M",
        ..Default::default()
    })
}

/// The address of `sockets` for a program that is started while the returned guard lives.
fn handed_down(sockets: &[OwnedFd]) -> (String, HandedDown<'_>) {
    let numbers: Vec<_> = (sockets.iter())
        .map(|socket| socket.as_raw_fd().to_string())
        .collect();
    let guard = HandedDown(sockets);
    guard.set(FdFlags::empty());
    (format!("fd:{}", numbers.join(",")), guard)
}

/// Programs inherit these sockets.
struct HandedDown<'a>(&'a [OwnedFd]);

impl HandedDown<'_> {
    fn set(&self, flags: FdFlags) {
        for socket in self.0 {
            fcntl_setfd(socket, flags).expect("an open descriptor");
        }
    }
}

impl Drop for HandedDown<'_> {
    fn drop(&mut self) {
        self.set(FdFlags::CLOEXEC);
    }
}

/// Migrates to `destination` over `sockets`, which `lacuna send` is started with.
fn send_over(sockets: &[OwnedFd], source: &mut Host, destination: &mut Host, lab: &Lab) {
    let (address, guard) = handed_down(sockets);
    let channels = (sockets.len() - 1).max(1).to_string();
    let job = ["send", &address, "--multifd-channels", &channels];
    command(source, &job).expect("the guest moves");
    drop(guard);
    destination
        .wait_until("the guest to arrive", PATIENCE, |status| {
            Ok(status.machine == MachineState::Held)
        })
        .expect("the guest arrives");
    let verdict = ask_oracle(GuestKind::Bare, source, destination).expect("a verdict");
    assert!(verdict.pages_compared > 0);
    lab.assert_right(&verdict, "over sockets that were handed down");
    release_and_check(destination);
}

#[test]
fn connections_that_both_commands_were_started_with_carry_a_guest() {
    if skipped_without_kvm("fd:, connected") {
        return;
    }
    // A control connection alone, and one with two channels.
    for count in [1, 3] {
        let lab = lab();
        let mut source = lab.running("source");
        let (near, far): (Vec<OwnedFd>, Vec<OwnedFd>) = (0..count)
            .map(|_| UnixStream::pair().expect("sockets"))
            .map(|(near, far)| (OwnedFd::from(near), OwnedFd::from(far)))
            .unzip();
        let (address, guard) = handed_down(&far);
        let (mut destination, _) = lab.receiving_at("destination", &address, true);
        drop(guard);
        send_over(&near, &mut source, &mut destination, &lab);
    }
}

#[test]
fn a_listening_socket_that_the_destination_was_started_with_takes_a_guest() {
    if skipped_without_kvm("fd:, listening") {
        return;
    }
    let lab = lab();
    let mut source = lab.running("source");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let listener = [OwnedFd::from(listener)];
    let (address, guard) = handed_down(&listener);
    let (mut destination, _) = lab.receiving_at("destination", &address, true);
    drop(guard);
    let near = [TcpStream::connect(("127.0.0.1", port))
        .expect("it listens")
        .into()];
    send_over(&near, &mut source, &mut destination, &lab);
}

#[test]
fn a_descriptor_that_is_no_connection_is_refused_and_the_guest_runs_on() {
    if skipped_without_kvm("fd:, refused") {
        return;
    }
    let lab = lab();
    let source = lab.running("source");
    let unconnected: OwnedFd = TcpListener::bind("127.0.0.1:0").expect("a port").into();
    let (address, guard) = handed_down(std::slice::from_ref(&unconnected));
    let error = command(&source, &["send", &address]).expect_err("it is refused");
    drop(guard);
    assert!(error.contains("not connected"), "{error}");
    let error = command(&source, &["send", "fd:999"]).expect_err("it is refused");
    assert!(error.contains("Bad file descriptor"), "{error}");
    let status = crate::lab::status(&source);
    assert_eq!(status.machine, MachineState::Running);
}
