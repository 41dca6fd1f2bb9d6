// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decides who may become the guest's agent: any client, or only one that proves that it has the key.
//!
//! A connection without proof takes one of `PLACES` places, for at most `PATIENCE`, and may send at most `MAX_BYTES`. It
//! keeps its place for at least `TURN`; after that the oldest one is closed when another comes. At most `PLACES` are
//! accepted during a `TURN`, in order of arrival. So a process that keeps connecting cannot keep this thread busy or keep
//! the agent out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use spec::agent::proof::{Challenge, Key, Proof};

use super::connection::Connection;

/// The most connections without proof at a time.
pub const PLACES: usize = 32;
/// The least time for which a newcomer keeps its place.
const TURN: Duration = Duration::from_millis(250);
/// A newcomer without proof is closed after this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// A newcomer that has sent this many bytes without a proof is closed. Some bytes must be allowed, because the rest of an
/// answer to a previous device may come first.
const MAX_BYTES: usize = 64 << 10;

/// The connections without proof, called newcomers.
#[derive(Debug)]
pub struct Door {
    key: Option<Key>,
    /// The oldest first.
    newcomers: VecDeque<Newcomer>,
    /// When the last [`PLACES`] newcomers came, the oldest first.
    came: VecDeque<Instant>,
}

impl Door {
    /// With a `key` an agent must prove that it has the key. Without one, every client may be the agent.
    pub fn new(key: Option<Key>) -> Self {
        Self {
            key,
            newcomers: VecDeque::with_capacity(PLACES),
            came: VecDeque::with_capacity(PLACES),
        }
    }

    /// When the next newcomer may be accepted; `None` if it may be accepted now.
    pub fn closed_until(&self, now: Instant) -> Option<Instant> {
        let first = self.came.front().filter(|_| self.came.len() == PLACES)?;
        Some(*first + TURN).filter(|until| *until > now)
    }

    /// Accepts a newcomer. Returns it if it needs no proof.
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
            // The oldest has had its turn: PLACES others have come since.
            self.newcomers.pop_front();
        }
        match Newcomer::challenged(connection, now) {
            Ok(newcomer) => self.newcomers.push_back(newcomer),
            Err(error) => log::warn!("agent socket: {error}"),
        }
        None
    }

    /// The sockets of the newcomers, by number.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.newcomers.iter().map(|one| one.connection.as_fd())
    }

    /// Reads from newcomer `number`, whose socket is readable. Returns it if its proof is right. If it is closed, the numbers
    /// of those after it decrease.
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
                "a process of the guest has posed as its agent, or the agent's key differs from \
                 --agent-key: hung up on"
            ),
        }
        let newcomer = self.newcomers.remove(number)?;
        (verdict == Verdict::Proven).then_some(newcomer.connection)
    }

    /// Closes the newcomers whose time is over. Returns when the next one's time is over.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        while let Some(oldest) = self.newcomers.front() {
            let until = oldest.came + PATIENCE;
            if until > now {
                return Some(until);
            }
            log::debug!("a connection to the agent's socket was closed: it sent no proof in time");
            self.newcomers.pop_front();
        }
        None
    }
}

/// A connection that must prove that it is the agent's.
#[derive(Debug)]
struct Newcomer {
    connection: Connection,
    challenge: Challenge,
    came: Instant,
    /// How many more bytes it may send.
    left: usize,
}

/// The state of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet.
    Open,
    Proven,
    /// It has disconnected, or has sent too much without a proof.
    Gone,
    /// It has sent a wrong proof.
    Wrong,
}

impl Newcomer {
    fn challenged(connection: Connection, now: Instant) -> io::Result<Self> {
        let mut random = [0; 32];
        // After boot, a read of so few bytes is complete and does not block.
        if getrandom(&mut random, GetRandomFlags::empty())? != random.len() {
            return Err(io::Error::other("the kernel has no random bytes"));
        }
        let challenge = Challenge::new(random);
        let frame = challenge.to_frame();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // If it has disconnected already, the next read shows that.
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
