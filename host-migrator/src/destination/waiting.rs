// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waits for the source among strangers: each connection is served in a thread of its own and has a short time to introduce
//! itself.
//!
//! A flood of connections must not push the source out while it introduces itself. So there are two groups, each with its
//! own limit. A connection without a valid header yet is *silent*. It keeps its place long enough for any source to send its
//! header; after that it is closed if all places are taken and another comes. While all silent connections are younger
//! than that, new ones wait in the kernel's queue, in order. A connection that has sent a valid header *speaks*, and
//! is closed only for another one that speaks.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::accepted::AcceptedSource;
use super::error::ReceiveError;
use super::introduction::{Heard, Incoming, Shape, hear};
use super::joins::Session;
use crate::vm::machine::DestinationMachine;
use crate::wire::{Closer, Connection, Listener};

/// How long a connection may take to introduce itself. Bytes that it sends do not extend this.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How long a silent connection keeps its place: long enough for the greeting to arrive and the header to come back.
const GRACE: Duration = Duration::from_secs(1);
/// The most connections that are silent at a time.
const MOST_SILENT: usize = 128;
/// The most connections that speak at a time.
const MOST_SPEAKING: usize = 32;
/// How often ended connections are looked for, while there are any.
const TICK: Duration = Duration::from_millis(10);
/// The longest wait for a connection, while there are none.
const IDLE: Duration = Duration::from_millis(200);
/// The pause after a connection that could not be accepted: file descriptors or threads may be short for a while.
const PAUSE: Duration = Duration::from_millis(100);

type FromStranger = (u64, Result<Heard, ReceiveError>);

/// A connection that has not introduced itself yet.
struct Stranger {
    number: u64,
    came: Instant,
    /// It has sent a valid header.
    speaks: Arc<AtomicBool>,
    connection: Closer,
}

/// The connections that have not introduced themselves yet, the oldest first.
struct Strangers {
    next: u64,
    waiting: VecDeque<Stranger>,
    answer: Sender<FromStranger>,
    answers: Receiver<FromStranger>,
}

/// Waits at `listener` for a source that fits `shape`.
pub(super) fn wait(
    listener: &Listener,
    shape: &Shape,
    machine: &mut dyn DestinationMachine,
) -> Result<Incoming, ReceiveError> {
    let mut strangers = Strangers::new();
    loop {
        if strangers.waiting.is_empty() && listener.is_exhausted() {
            return Err(ReceiveError::NoneLeft);
        }
        match strangers.next(listener, shape) {
            Some(Heard::Source(source)) => {
                if let Some(source) = strangers.receive(*source, listener, shape, machine) {
                    return Ok(source);
                }
            }
            Some(Heard::Channel(joining)) => {
                send_away("channel", ReceiveError::NoSession, |error| {
                    joining.refuse(error)
                });
            }
            None => {}
        }
    }
}

/// Waits at `listener` until all connections of `session` have joined.
pub(super) fn join(
    listener: &Listener,
    shape: &Shape,
    session: &mut dyn Session,
) -> Result<(), ReceiveError> {
    Strangers::new().gather(session, listener, shape)
}

/// Tells a connection why it is refused: in a thread, because that may wait. Without a thread it sees only the end.
fn send_away(who: &str, error: ReceiveError, refuse: impl FnOnce(&ReceiveError) + Send + 'static) {
    log::info!("a {who} was refused: {error}");
    let _ = thread::Builder::new()
        .name("refusal".into())
        .spawn(move || refuse(&error));
}

impl Strangers {
    fn new() -> Self {
        let (answer, answers) = channel();
        Self {
            next: 0,
            waiting: VecDeque::new(),
            answer,
            answers,
        }
    }

    /// The next that has introduced itself, if one does so in a moment. Meanwhile others are admitted.
    fn next(&mut self, listener: &Listener, shape: &Shape) -> Option<Heard> {
        if let Some(heard) = self.heard() {
            return Some(heard);
        }
        if !self.make_room() {
            thread::sleep(TICK);
            return None;
        }
        let patience = if self.waiting.is_empty() { IDLE } else { TICK };
        match listener.accept(Some(patience)) {
            Ok(connection) => self.admit(connection, shape),
            Err(error) if error.source.kind() == ErrorKind::TimedOut => {}
            Err(error) => {
                log::warn!("{error}");
                thread::sleep(PAUSE);
            }
        }
        None
    }

    /// The next that has introduced itself.
    fn heard(&mut self) -> Option<Heard> {
        loop {
            let (number, answer) = match self.answers.try_recv() {
                Ok(answer) => answer,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            };
            self.waiting.retain(|stranger| stranger.number != number);
            match answer {
                Ok(heard) => return Some(heard),
                Err(error) => log::info!("a connection was refused: {error}"),
            }
        }
    }

    /// Accepts `source` if its guest fits, and waits for its channels. `None` if it does not come to that.
    fn receive(
        &mut self,
        mut source: Incoming,
        listener: &Listener,
        shape: &Shape,
        machine: &mut dyn DestinationMachine,
    ) -> Option<Incoming> {
        if let Err(error) = source.judged_by(machine) {
            send_away("source", error, move |error| source.refuse(error));
            return None;
        }
        let complete = AcceptedSource::accept(source).and_then(|mut session| {
            match self.gather(&mut session, listener, shape) {
                Ok(()) => session.complete(),
                Err(error) => {
                    session.refuse(&error);
                    Err(error)
                }
            }
        });
        complete
            .inspect_err(|error| log::info!("a source was refused: {error}"))
            .ok()
    }

    /// Waits until all connections of `session` have joined.
    fn gather(
        &mut self,
        session: &mut dyn Session,
        listener: &Listener,
        shape: &Shape,
    ) -> Result<(), ReceiveError> {
        while !session.is_complete() {
            session.check()?;
            match self.next(listener, shape) {
                Some(Heard::Channel(joining)) => {
                    if let Some((error, joining)) = session.join(joining) {
                        send_away("channel", error, |error| joining.refuse(error));
                    }
                }
                Some(Heard::Source(mut other)) => {
                    send_away("source", ReceiveError::Busy, move |error| {
                        other.refuse(error)
                    });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Closes the oldest connection if there are too many. Returns `false` if all of them are too young for that.
    fn make_room(&mut self) -> bool {
        if let (MOST_SPEAKING.., Some(oldest)) = self.crowd(true) {
            self.close(oldest);
        }
        match self.crowd(false) {
            (MOST_SILENT.., Some(oldest)) if self.waiting[oldest].came.elapsed() < GRACE => false,
            (MOST_SILENT.., Some(oldest)) => {
                self.close(oldest);
                true
            }
            _ => true,
        }
    }

    /// How many connections speak or are silent, and the place of the oldest of them.
    fn crowd(&self, speaks: bool) -> (usize, Option<usize>) {
        let crowd = || {
            (self.waiting.iter().enumerate())
                .filter(|(_, stranger)| stranger.speaks.load(Ordering::Acquire) == speaks)
        };
        (crowd().count(), crowd().next().map(|(place, _)| place))
    }

    fn close(&mut self, place: usize) {
        if let Some(stranger) = self.waiting.remove(place) {
            stranger.connection.close();
        }
    }

    fn admit(&mut self, connection: Connection, shape: &Shape) {
        connection
            .stop_flag()
            .set_deadline(INTRODUCTION, "the introduction");
        let (number, answer, shape) = (self.next, self.answer.clone(), shape.clone());
        self.next += 1;
        let speaks = Arc::<AtomicBool>::default();
        self.waiting.push_back(Stranger {
            number,
            came: Instant::now(),
            speaks: Arc::clone(&speaks),
            connection: connection.closer(),
        });
        let spawned = thread::Builder::new()
            .name("introduction".into())
            .spawn(move || {
                let stop = connection.stop_flag();
                let speaking = || speaks.store(true, Ordering::Release);
                let heard = hear(connection, &shape, &speaking);
                stop.clear_deadline();
                // Another source was accepted first.
                let _ = answer.send((number, heard));
            });
        if let Err(error) = spawned {
            log::warn!("a connection was refused: {error}");
            self.waiting.pop_back();
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        for stranger in &self.waiting {
            stranger.connection.close();
        }
    }
}
