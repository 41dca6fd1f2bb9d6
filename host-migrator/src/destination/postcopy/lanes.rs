// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lanes that bring pages: each is read by a thread of its own, which places what it brings.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use spec::stream::SectionKind;

use super::placing::Coming;
use crate::compression::Unpacker;
use crate::destination::error::ReceiveError;
use crate::destination::joining::Joined;
use crate::destination::placing::Placer;
use crate::destination::report::unexpected;
use crate::panics::text_of;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Closer, Heartbeats, SectionError, StopFlag};

/// Lanes that are read.
pub(super) struct Lanes {
    stop: StopFlag,
    closers: Vec<Closer>,
    threads: Vec<JoinHandle<()>>,
    heartbeats: Heartbeats,
}

impl Lanes {
    /// Begins to read the lanes that have `joined`, and to place in `coming` what they bring. `stop` ends their waits. `breaks` is called
    /// with the reason when one ends.
    pub(super) fn start(
        joined: Vec<Joined>,
        stop: StopFlag,
        coming: &Arc<Coming>,
        breaks: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Self, ReceiveError> {
        let outs = joined.iter().map(|lane| lane.out.clone()).collect();
        let heartbeats = Heartbeats::start(outs).map_err(SectionError::from)?;
        let mut lanes = Self {
            stop,
            closers: Vec::new(),
            threads: Vec::new(),
            heartbeats,
        };
        for (number, lane) in joined.into_iter().enumerate() {
            let (coming, breaks) = (Arc::clone(coming), Arc::clone(&breaks));
            lanes.closers.push(lane.connection);
            let thread = thread::Builder::new()
                .name(format!("lane {number}"))
                .spawn(move || {
                    // What comes on the first was asked for, and is not limited.
                    let answers = (number > 0).then_some(lane.out);
                    let read =
                        catch_unwind(AssertUnwindSafe(|| read(lane.input, answers, &coming)));
                    let read =
                        read.unwrap_or_else(|panic| Err(ReceiveError::Panicked(text_of(&*panic))));
                    let Err(error) = read;
                    breaks(&format!("lane {number}: {error}"));
                });
            lanes.threads.push(thread.map_err(SectionError::from)?);
        }
        Ok(lanes)
    }

    /// Ends the lanes, without waiting for that.
    pub(super) fn shut(&self) {
        self.stop.raise();
        self.closers.iter().for_each(Closer::shut);
    }

    /// Ends the lanes. Nothing is placed afterwards.
    pub(super) fn end(self) {
        self.shut();
        drop(self.heartbeats);
        for thread in self.threads {
            // Its panics break the lane.
            let _ = thread.join();
        }
    }
}

/// Places what `input` brings until it ends, and says so on `answers` of each section.
fn read(
    mut input: SectionReader,
    mut answers: Option<SectionWriter>,
    coming: &Coming,
) -> Result<std::convert::Infallible, ReceiveError> {
    let placer = Placer::new(coming)?;
    let (mut payload, mut unpacker) = (Vec::new(), Unpacker::default());
    loop {
        let header = input.header()?;
        match header.kind {
            kind @ (SectionKind::Pages | SectionKind::CompressedPages) => {
                input.payload_into(&header, &mut payload)?;
                placer.pages(kind, &payload, &mut unpacker)?;
            }
            kind @ SectionKind::Zero => {
                input.payload_into(&header, &mut payload)?;
                placer.make_zero(kind, &payload)?;
            }
            found => return Err(unexpected(found, "pages").into()),
        }
        if let Some(out) = &mut answers {
            out.section(SectionKind::Placed, [])
                .map_err(SectionError::from)?;
        }
    }
}
