// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers the host's requests for free page hints, in short steps between the other work.

use lacuna_balloon_driver::balloon::MAX_HINT_PAGES;
use lacuna_balloon_driver::{Balloon, Mmio, ProbeError, RoundError};
use spec::balloon::{Command, CommandId};
use spec::bare::{AnswerPolicy, LATE_MS, PageState, SLOW_BYTES_PER_SECOND, StatusWord};
use spec::{PAGE_SIZE, PageRange};

use crate::allocator;
use crate::console::println;
use crate::memory::Memory;
use crate::status;
use crate::time::{self, Clock, Ticks};

/// The balloon. One vCPU serves it.
#[derive(Debug)]
pub struct Hinting<'m> {
    memory: &'m Memory,
    /// `None` if there is no balloon, or it is broken.
    balloon: Option<Balloon<Mmio>>,
    phase: Phase,
    /// The next request to answer.
    next: Option<CommandId>,
    answer: AnswerPolicy,
    /// The earliest time of the next answer.
    due: Ticks,
    /// The run that was hinted last, which [`spec::bare::AnswerPolicy::Flood`] repeats.
    last: Option<Run>,
    clock: Clock,
    /// The time limit of a step.
    step: Ticks,
    /// How often a step checks whether the host still wants hints.
    poll: Ticks,
}

/// The state of the answer to a request.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// All pages below `cursor` were checked; `run` is held and not hinted yet.
    Round {
        cursor: u64,
        run: Option<Run>,
    },
    /// Only STOP is missing.
    Ending,
}

/// Managed pages that are contiguous in memory.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    count: u64,
}

impl<'m> Hinting<'m> {
    /// Sets up the balloon, if there is one.
    pub fn new(memory: &'m Memory, clock: Clock, answer: AnswerPolicy) -> Self {
        let balloon = crate::ports::take_window()
            .zip(memory.take_rings())
            .ok_or(ProbeError::NoDevice)
            // The guest does not depend on the content of its free pages, so its poison value is 0.
            .and_then(|(window, rings)| Balloon::new(window, rings, Some(0)));
        match &balloon {
            Ok(balloon) => println!("balloon: features {:#x}", balloon.features()),
            Err(error) => println!("no balloon: {error}"),
        }
        Self {
            memory,
            balloon: balloon.ok(),
            phase: Phase::Idle,
            next: None,
            answer,
            due: 0,
            last: None,
            clock,
            step: clock.micros(2000),
            poll: clock.micros(200),
        }
    }

    /// Checks for a request and goes on with the answer. Returns whether there is more to do at once.
    pub fn step(&mut self) -> bool {
        if self.answer == AnswerPolicy::Silent {
            return false;
        }
        let Some(mut balloon) = self.balloon.take() else {
            return false;
        };
        let more = match self.advance(&mut balloon) {
            Ok(more) => more,
            // The device has not used its buffers yet. Do other work meanwhile.
            Err(RoundError::Full) => false,
            Err(error) => {
                println!("no more hints: {error}");
                self.release();
                return false;
            }
        };
        self.balloon = Some(balloon);
        more
    }

    fn advance(&mut self, balloon: &mut Balloon<Mmio>) -> Result<bool, RoundError> {
        let start = time::now();
        let mut more = true;
        while more && time::now().wrapping_sub(start) < self.step {
            self.obey(balloon.poll());
            more = self.hint_for_a_while(balloon)?;
        }
        Ok(more)
    }

    /// Follows the host's new command. Every new command ends the round.
    fn obey(&mut self, news: Option<Command>) {
        let Some(command) = news else {
            return;
        };
        if let Phase::Round { run, .. } = self.phase {
            self.unhold(run);
            self.phase = Phase::Ending;
        }
        self.next = None;
        self.last = None;
        match command {
            Command::Start(id) => {
                self.next = Some(id);
                if self.answer == AnswerPolicy::Late {
                    self.rest(LATE_MS * 1000);
                }
            }
            Command::Stop => {}
            Command::Done => {
                self.release();
                status::add(StatusWord::Dones, 1);
            }
        }
    }

    /// Goes on with the answer until it is time to poll again. Returns false if there is nothing to do.
    fn hint_for_a_while(&mut self, balloon: &mut Balloon<Mmio>) -> Result<bool, RoundError> {
        let start = time::now();
        while time::now().wrapping_sub(start) < self.poll {
            if time::now() < self.due && !matches!(self.phase, Phase::Ending) {
                return Ok(false);
            }
            match self.phase {
                Phase::Idle => {
                    let Some(id) = self.next else {
                        return Ok(false);
                    };
                    balloon.begin_round(id)?;
                    self.next = None;
                    self.phase = Phase::Round {
                        cursor: 0,
                        run: None,
                    };
                    status::add(StatusWord::HintRounds, 1);
                }
                Phase::Round {
                    run: Some(run),
                    cursor,
                } => {
                    balloon.hint(self.range(run)?)?;
                    self.phase = Phase::Round { cursor, run: None };
                    self.last = Some(run);
                    if self.answer == AnswerPolicy::Slow {
                        self.rest(run.count * PAGE_SIZE * 1_000_000 / SLOW_BYTES_PER_SECOND);
                    }
                    status::add(StatusWord::HintedPages, run.count);
                }
                Phase::Round { run: None, cursor } => {
                    self.phase = match self.hold_next(cursor) {
                        Some(run) => Phase::Round {
                            cursor: run.start + run.count,
                            run: Some(run),
                        },
                        None if self.answer == AnswerPolicy::Flood && self.last.is_some() => {
                            Phase::Round {
                                cursor,
                                run: self.last,
                            }
                        }
                        None => Phase::Ending,
                    };
                }
                Phase::Ending => {
                    balloon.end_round()?;
                    self.phase = Phase::Idle;
                }
            }
        }
        Ok(true)
    }

    /// Pauses answers for `microseconds`.
    fn rest(&mut self, micros: u64) {
        self.due = time::now().saturating_add(self.clock.micros(micros));
    }

    /// Holds the next run of free pages from page `cursor` on.
    fn hold_next(&self, cursor: u64) -> Option<Run> {
        let pages = self.memory.pages();
        let start = (cursor..pages).find(|&index| {
            self.memory.is(index, PageState::Free) && allocator::hold(self.memory, index)
        })?;
        let end = (start + 1..pages.min(start + MAX_HINT_PAGES))
            .find(|&index| {
                self.memory.map().starts_region(index) || !allocator::hold(self.memory, index)
            })
            .unwrap_or(pages.min(start + MAX_HINT_PAGES));
        Some(Run {
            start,
            count: end - start,
        })
    }

    fn range(&self, run: Run) -> Result<PageRange, RoundError> {
        PageRange::new(self.memory.map().frame(run.start), run.count).ok_or(RoundError::Range)
    }

    /// Releases a run that was not hinted.
    fn unhold(&self, run: Option<Run>) {
        let pages = run.map_or(0..0, |run| run.start..run.start + run.count);
        pages.for_each(|index| allocator::unhold(self.memory, index));
    }

    /// Releases every hinted page.
    fn release(&self) {
        (0..self.memory.pages()).for_each(|index| allocator::unhold(self.memory, index));
    }
}
