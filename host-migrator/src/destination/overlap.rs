// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Places the pages of one section in a thread of its own, while the next section is being received.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Scope};

use spec::stream::SectionKind;

use super::error::ReceiveError;
use super::placing::Placer;
use crate::compression::Unpacker;
use crate::wire::SectionError;

/// Sections that wait to be placed, or are being placed, at most.
const MOST_WAITING: usize = 2;

/// A plain section that is smaller is placed at once: to hand it over takes longer.
const SMALL: usize = 128 << 10;

/// Places pages behind the back of the thread that receives them, in the order in which they come.
pub(super) struct Overlap<'a> {
    placer: Placer<'a>,
    waiting: Sender<(SectionKind, Vec<u8>)>,
    placed: Receiver<Placed>,
    under_way: usize,
    /// Buffers that can be used again.
    spare: Vec<Vec<u8>>,
    pages: u64,
}

/// A section's payload that was placed, and how many pages it had.
type Placed = (Vec<u8>, Result<u64, ReceiveError>);

impl<'a> Overlap<'a> {
    /// Starts the thread. It ends when this is dropped.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        placer: Placer<'scope>,
    ) -> Result<Self, ReceiveError>
    where
        'scope: 'a,
    {
        let (waiting, to_place) = channel::<(SectionKind, Vec<u8>)>();
        let (tell, placed) = channel();
        thread::Builder::new()
            .name("placing".into())
            .spawn_scoped(scope, move || {
                let mut unpacker = Unpacker::default();
                for (kind, payload) in to_place {
                    let result = placer.pages(kind, &payload, &mut unpacker);
                    if tell.send((payload, result)).is_err() {
                        return;
                    }
                }
            })
            .map_err(SectionError::from)?;
        Ok(Self {
            placer,
            waiting,
            placed,
            under_way: 0,
            spare: Vec::new(),
            pages: 0,
        })
    }

    /// A buffer for the next section. Waits if too many are under way.
    ///
    /// # Errors
    /// If a section before could not be placed.
    pub(super) fn buffer(&mut self) -> Result<Vec<u8>, ReceiveError> {
        while self.under_way > MOST_WAITING {
            self.take()?;
        }
        Ok(self.spare.pop().unwrap_or_default())
    }

    /// Has the pages of a `Pages` or `CompressedPages` section placed.
    ///
    /// # Errors
    /// If they cannot be placed, or those before. What is placed by the thread may fail later.
    pub(super) fn place(
        &mut self,
        kind: SectionKind,
        payload: Vec<u8>,
    ) -> Result<(), ReceiveError> {
        if kind == SectionKind::Pages && payload.len() < SMALL {
            self.finish()?;
            self.pages += self.placer.plain(&payload)?;
            self.spare.push(payload);
            return Ok(());
        }
        // Without the thread, which can only have panicked, the next call finds no answer.
        let _ = self.waiting.send((kind, payload));
        self.under_way += 1;
        Ok(())
    }

    /// Waits until everything is placed.
    ///
    /// # Errors
    /// If a section could not be placed.
    pub(super) fn finish(&mut self) -> Result<(), ReceiveError> {
        while self.under_way > 0 {
            self.take()?;
        }
        Ok(())
    }

    /// Pages that have been placed.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    fn take(&mut self) -> Result<(), ReceiveError> {
        let lost = |_| ReceiveError::Panicked("the thread that places pages".into());
        let (payload, result) = self.placed.recv().map_err(lost)?;
        self.under_way -= 1;
        self.pages += result?;
        self.spare.push(payload);
        Ok(())
    }
}
