// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each arm does.

use std::time::Duration;

use host_migrator::paging::{BareAnswer, Mapping, answer_barely};
use spec::PageRange;

use super::super::BenchError;
use super::super::content::{Content, new_memory};
use super::engine::{HandOver, timed};
use super::long_link::Link;
use super::record::Sample;
use super::touching::{some_of, touch};
use super::{ping_pong, touching};
use crate::args::{PostcopyArgs, PostcopyArm};

/// What all arms share.
pub(super) struct Bench {
    content: Content,
    touches: u32,
    seed: u64,
    link: Link,
}

impl Bench {
    /// For a guest with this `content`.
    pub(super) fn new(args: &PostcopyArgs, content: Content) -> Self {
        Self {
            content,
            touches: args.touches.get(),
            seed: args.seed,
            link: Link {
                delay: Duration::from_millis(args.delay_ms),
                window: args.window.0 as usize,
            },
        }
    }

    /// Runs `arm` once.
    ///
    /// # Errors
    /// [`BenchError`] if it cannot. Wrong pages are in the sample.
    pub(super) fn run(&self, arm: PostcopyArm, turn: u32) -> Result<Sample, BenchError> {
        match arm {
            PostcopyArm::PingPong => ping_pong::measure(self.touches),
            PostcopyArm::BareFault => self.bare(turn, true),
            PostcopyArm::BareZero => self.bare(turn, false),
            PostcopyArm::Fault | PostcopyArm::Faults1 => self.faults(turn, 1, false),
            PostcopyArm::FaultPushing => self.faults(turn, 1, true),
            PostcopyArm::Faults2 => self.faults(turn, 2, false),
            PostcopyArm::Faults3 => self.faults(turn, 3, false),
            PostcopyArm::Faults4 => self.faults(turn, 4, false),
            PostcopyArm::Hinted => self.hinted(turn),
            PostcopyArm::Push1 => self.push(1),
            PostcopyArm::Push4 => self.push(4),
        }
    }

    /// Even pages to be touched, in an order of this `turn`.
    fn even_pages(&self, turn: u32) -> Vec<u64> {
        let pairs = self.content.pages().count() / 2;
        let seed = self.seed ^ u64::from(turn) << 32;
        let some = some_of(pairs, self.touches.into(), seed);
        some.into_iter().map(|pair| pair * 2).collect()
    }

    /// The least answer, with content or zeros.
    fn bare(&self, turn: u32, has_content: bool) -> Result<Sample, BenchError> {
        let pages = self.even_pages(turn);
        let (ram, _file) = new_memory(self.content.pages().bytes())?;
        let source = self.content.ram().clone();
        let answer = match has_content {
            true => BareAnswer::Content(Box::new(move |page, content| {
                let page = PageRange::new(page, 1).ok_or(std::io::ErrorKind::InvalidInput)?;
                source.read(page, content).map_err(std::io::Error::other)
            })),
            false => BareAnswer::Zero,
        };
        let mapping = Mapping::all_of(ram.memory());
        let mapping = *mapping.first().ok_or(BenchError::Ended {
            what: "it had memory",
        })?;
        let answering = answer_barely(mapping, pages.len() as u64, answer)?;
        let source = has_content.then(|| &**self.content.ram());
        let sample = touch(&ram, &pages, 1, source)?;
        let answered = answering
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        answered.map_err(BenchError::io("cannot answer a fault"))?;
        Ok(sample)
    }

    /// `threads` touch pages of a guest that was handed over.
    fn faults(&self, turn: u32, threads: usize, pushes: bool) -> Result<Sample, BenchError> {
        let pages = self.even_pages(turn);
        let hand_over = HandOver {
            pushes,
            hints: false,
            channels: 1,
            link: None,
        };
        let source = &**self.content.ram();
        let (sample, report) = hand_over.with(&self.content, |arrived| {
            let mut sample = touch(arrived.ram, &pages, threads, Some(source))?;
            if pushes {
                arrived.until_complete()?;
                let all: Vec<u64> = (0..self.content.pages().end()).collect();
                sample.pages_compared = all.len() as u64;
                sample.pages_wrong = touching::wrong(arrived.ram, source, &all)?;
            }
            Ok(sample)
        })?;
        Ok(sample.with(&report))
    }

    /// A thread touches pages that were hinted.
    fn hinted(&self, turn: u32) -> Result<Sample, BenchError> {
        let even = self.even_pages(turn).into_iter();
        let odd: Vec<u64> = even.map(|page| page + 1).collect();
        let hand_over = HandOver {
            pushes: false,
            hints: true,
            channels: 1,
            link: None,
        };
        let (sample, report) = hand_over.with(&self.content, |arrived| {
            let (zeros, _file) = new_memory(self.content.pages().bytes())?;
            touch(arrived.ram, &odd, 1, Some(&zeros))
        })?;
        Ok(sample.with(&report))
    }

    /// Nobody touches a page, and all memory comes over a long link.
    fn push(&self, channels: u32) -> Result<Sample, BenchError> {
        let hand_over = HandOver {
            pushes: true,
            hints: false,
            channels,
            link: Some(self.link),
        };
        let source = &**self.content.ram();
        let all: Vec<u64> = (0..self.content.pages().end()).collect();
        let (sample, report) = hand_over.with(&self.content, |arrived| {
            let seconds = timed(|| arrived.until_complete())?;
            Ok(Sample {
                per_s: Some(all.len() as f64 / seconds),
                pages_compared: all.len() as u64,
                pages_wrong: touching::wrong(arrived.ram, source, &all)?,
                ..Sample::default()
            })
        })?;
        Ok(sample.with(&report))
    }
}
