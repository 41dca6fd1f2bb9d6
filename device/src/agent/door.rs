// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decides who may become the guest's agent: any client, or only one that proves that it has the key.
//!
//! A connection without proof costs one of `PLACES` places, for `PATIENCE` at most, and `MAX_BYTES` of reading.
//! Each keeps its place for at least `TURN`; after that the oldest gives way to the next one. At most `PLACES` are let
//! in during a `TURN`, in the order in which they came. So a process that connects again and again cannot keep this
//! thread busy or keep the agent from its turn.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use spec::agent::proof::{Challenge, Key, Proof};

use super::connection::Connection;

/// Connections that may be without proof at a time.
pub const PLACES: usize = 32;
/// How long a newcomer keeps its place at least.
const TURN: Duration = Duration::from_millis(250);
/// A newcomer that has not proved itself after this time is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);
/// A newcomer that has sent this many bytes without a proof is hung up on. Some bytes must be allowed: on a line that this
/// device has just taken over, the rest of an answer to the previous device may come first.
const MAX_BYTES: usize = 64 << 10;

/// Newcomers, and what is asked of them.
#[derive(Debug)]
pub struct Door {
    key: Option<Key>,
    /// The oldest first.
    newcomers: VecDeque<Newcomer>,
    /// When the last [`PLACES`] newcomers came, the oldest first.
    came: VecDeque<Instant>,
}

impl Door {
    /// With a `key` an agent is to prove that it has it. Without, whoever connects is the agent.
    pub fn new(key: Option<Key>) -> Self {
        Self {
            key,
            newcomers: VecDeque::with_capacity(PLACES),
            came: VecDeque::with_capacity(PLACES),
        }
    }

    /// When the next newcomer may be let in, if it may not be now.
    pub fn closed_until(&self, now: Instant) -> Option<Instant> {
        let first = self.came.front().filter(|_| self.came.len() == PLACES)?;
        Some(*first + TURN).filter(|until| *until > now)
    }

    /// Lets a newcomer in. It is returned if it has nothing to prove.
    pub fn let_in(&mut self, port: UnixStream, now: Instant) -> Option<Connection> {
        if self.came.len() == PLACES {
            self.came.pop_front();
        }
        self.came.push_back(now);
        let connection = Connection::new(port);
        if self.key.is_none() {
            return Some(connection);
        }
        if self.newcomers.len() == PLACES {
            // It has had its turn: PLACES others have come since, and they come no faster.
            self.newcomers.pop_front();
        }
        match Newcomer::challenged(connection, now) {
            Ok(newcomer) => self.newcomers.push_back(newcomer),
            Err(error) => log::warn!("agent socket: {error}"),
        }
        None
    }

    /// The sockets of those that are to prove themselves. Their places in this order are their numbers.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.newcomers.iter().map(|one| one.connection.as_fd())
    }

    /// Hears newcomer `number`, whose socket is readable. It is returned if it has proved itself. If it has hung up or
    /// is hung up on, those behind it move up.
    pub fn hear(&mut self, number: usize) -> Option<Connection> {
        let newcomer = self.newcomers.get_mut(number)?;
        let verdict = newcomer.hear(self.key.as_ref()?);
        match verdict {
            Verdict::Open => return None,
            Verdict::Proven => {}
            Verdict::Gone => {
                log::debug!("a connection to the agent's socket ended without a proof")
            }
            Verdict::Wrong => log::warn!(
                "a process of the guest has tried to pass for its agent, or the agent has another key than \
                 --agent-key: hung up on"
            ),
        }
        let newcomer = self.newcomers.remove(number)?;
        (verdict == Verdict::Proven).then_some(newcomer.connection)
    }

    /// Hangs up on those whose time is over. Says when the next one's is.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        while let Some(oldest) = self.newcomers.front() {
            let until = oldest.came + PATIENCE;
            if until > now {
                return Some(until);
            }
            log::debug!("a connection to the agent's socket has proved nothing: hung up on");
            self.newcomers.pop_front();
        }
        None
    }
}

/// A connection that is to prove itself.
#[derive(Debug)]
struct Newcomer {
    connection: Connection,
    challenge: Challenge,
    came: Instant,
    /// Bytes that it may yet send.
    left: usize,
}

/// What is known of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet.
    Open,
    Proven,
    /// It has hung up, or sends much and no proof.
    Gone,
    /// It has sent a wrong proof.
    Wrong,
}

impl Newcomer {
    fn challenged(connection: Connection, now: Instant) -> io::Result<Self> {
        let mut random = [0; 32];
        // So few bytes come whole, and do not wait in a system that has booted.
        if getrandom(&mut random, GetRandomFlags::empty())? != random.len() {
            return Err(io::Error::other("the kernel has no random bytes"));
        }
        let challenge = Challenge::new(random);
        let frame = challenge.to_frame();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // One that is gone already shows when it is read from.
        let _ = rustix::net::send(&**connection.port(), &frame, flags);
        Ok(Self {
            connection,
            challenge,
            came: now,
            left: MAX_BYTES,
        })
    }

    /// Reads once and looks for a proof. What follows the proof stays in the connection.
    fn hear(&mut self, key: &Key) -> Verdict {
        let count = match self.connection.fill() {
            Ok(0) | Err(_) => return Verdict::Gone,
            Ok(count) => count,
        };
        while let Some(frame) = self.connection.next_frame() {
            if let Some(proof) = Proof::read(&frame) {
                return if key.accepts(&self.challenge, &proof) {
                    Verdict::Proven
                } else {
                    Verdict::Wrong
                };
            }
        }
        self.left = self.left.saturating_sub(count);
        if self.left == 0 {
            Verdict::Gone
        } else {
            Verdict::Open
        }
    }
}
