// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for the one source among strangers: each connection introduces itself in a thread of its own and has a short
//! time for it; when there are too many, the oldest gives way.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use super::incoming::{Incoming, Shape};
use super::{ReceiveError, ReceiveError as Error};
use crate::vm::machine::DestinationMachine;
use crate::wire::{Closer, Connection, Listener};

/// How long a connection may take to introduce itself; no byte of it makes this longer.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// The most connections that introduce themselves at a time.
const MOST_STRANGERS: usize = 32;
/// How often it is looked whether one has ended, while there are any.
const TICK: Duration = Duration::from_millis(10);
/// The longest wait for a connection, while there are none.
const IDLE: Duration = Duration::from_secs(1);
/// The pause after a connection that could not be taken: file descriptors or threads may be short for a while.
const PAUSE: Duration = Duration::from_millis(100);

type Answer = (u64, Result<Incoming, Error>);

/// The connections that have not introduced themselves yet, the oldest first.
struct Strangers {
    next: u64,
    waiting: VecDeque<(u64, Closer)>,
    answer: Sender<Answer>,
    answers: Receiver<Answer>,
}

/// Waits at `listener` for a source that fits `shape`.
pub(super) fn wait(
    listener: &Listener,
    shape: &Shape,
    machine: &mut dyn DestinationMachine,
) -> Result<Incoming, ReceiveError> {
    let (answer, answers) = channel();
    let mut strangers = Strangers {
        next: 0,
        waiting: VecDeque::new(),
        answer,
        answers,
    };
    loop {
        if let Some(source) = strangers.source(machine) {
            return Ok(source);
        }
        let patience = if strangers.waiting.is_empty() {
            IDLE
        } else {
            TICK
        };
        match listener.accept(Some(patience)) {
            Ok(connection) => strangers.admit(connection, shape),
            Err(error) if error.source.kind() == ErrorKind::TimedOut => {}
            Err(error) => {
                log::warn!("{error}");
                thread::sleep(PAUSE);
            }
        }
    }
}

impl Strangers {
    /// The first that has introduced itself as a source that fits.
    fn source(&mut self, machine: &mut dyn DestinationMachine) -> Option<Incoming> {
        loop {
            let (number, answer) = match self.answers.try_recv() {
                Ok(answer) => answer,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            };
            self.waiting.retain(|(other, _)| *other != number);
            let mut source = match answer {
                Ok(source) => source,
                Err(error) => {
                    log::info!("a connection was refused: {error}");
                    continue;
                }
            };
            let Err(error) = source.judged_by(machine) else {
                return Some(source);
            };
            log::info!("a connection was refused: {error}");
            // Nobody else waits for its last words. Without a thread it sees the end, and no reason.
            let _ = thread::Builder::new()
                .name("refusal".into())
                .spawn(move || source.refuse(&error));
        }
    }

    fn admit(&mut self, connection: Connection, shape: &Shape) {
        if self.waiting.len() >= MOST_STRANGERS
            && let Some((_, oldest)) = self.waiting.pop_front()
        {
            oldest.close();
        }
        connection
            .stop_flag()
            .set_deadline(INTRODUCTION, "the introduction");
        let (number, answer, shape) = (self.next, self.answer.clone(), shape.clone());
        self.next += 1;
        self.waiting.push_back((number, connection.closer()));
        let spawned = thread::Builder::new()
            .name("introduction".into())
            .spawn(move || {
                let stop = connection.stop_flag();
                let heard = Incoming::hear(connection, &shape);
                stop.clear_deadline();
                // Nobody waits for it any more: another one was first.
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
        for (_, connection) in &self.waiting {
            connection.close();
        }
    }
}
