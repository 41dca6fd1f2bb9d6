// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot file as a sink.

use std::fmt;
use std::time::{Duration, Instant};

use spec::PageRange;
use spec::stream::Totals;

use super::{Sink, SinkError, by_run};
use crate::memory::layout::Layout;
use crate::memory::page_buffer::PageBuffer;
use crate::snapshot::{DirectIo, Saved, SnapshotTarget, SnapshotWriter, Storage, open_storage};
use crate::vm::state::{MachineState, StateSection};

/// Writes a guest into a snapshot file. The guest runs on as soon as its last pages are copied; what makes the snapshot
/// complete follows ([`Sink::finish`]). If it is dropped before, there is no new snapshot.
pub struct FileSink {
    /// Until the snapshot is complete.
    writer: Option<SnapshotWriter>,
    /// Bytes of pages that were taken.
    taken: u64,
    /// Bytes of the machine's state.
    state_bytes: u64,
    state: MachineState,
    totals: Option<Totals>,
    saved: Option<Saved>,
}

impl FileSink {
    /// A snapshot at `target`, of a guest whose memory has this `layout` and which needs the machine of this `description`
    /// ([`SourceMachine::describe`](crate::SourceMachine::describe)). The pages go through the page cache, or not, as `direct_io`
    /// says.
    ///
    /// # Errors
    /// [`SinkError::Snapshot`] if no file can hold such a guest, the file cannot be written, or its file system refuses `direct_io`.
    pub fn create(
        target: &SnapshotTarget,
        direct_io: DirectIo,
        layout: &Layout,
        description: &[u8],
    ) -> Result<Self, SinkError> {
        Self::new(open_storage(target, direct_io)?, layout, description)
    }

    /// As [`FileSink::create`], in any storage.
    ///
    /// # Errors
    /// As [`FileSink::create`].
    pub fn new(
        storage: Box<dyn Storage>,
        layout: &Layout,
        description: &[u8],
    ) -> Result<Self, SinkError> {
        Ok(Self {
            writer: Some(SnapshotWriter::begin(storage, layout, description)?),
            taken: 0,
            state_bytes: 0,
            state: MachineState::default(),
            totals: None,
            saved: None,
        })
    }

    /// Has `count` threads write the pages, at least one and at most [`MAX_CHANNELS`](crate::MAX_CHANNELS). Without this the sink
    /// writes them itself, one after the other.
    ///
    /// # Errors
    /// [`SinkError::Snapshot`] if a thread cannot be started.
    pub fn with_writers(mut self, count: u32) -> Result<Self, SinkError> {
        let writer = self.writer.take().ok_or(SinkError::Finished)?;
        self.writer = Some(writer.with_writers(count.max(1))?);
        Ok(self)
    }

    /// The snapshot, if it is complete.
    pub fn saved(&self) -> Option<Saved> {
        self.saved
    }

    fn writer(&mut self) -> Result<&mut SnapshotWriter, SinkError> {
        self.writer.as_mut().ok_or(SinkError::Finished)
    }

    fn remove(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        let writer = self.writer()?;
        let mut runs = runs.iter();
        Ok(runs.try_for_each(|run| writer.remove(*run))?)
    }
}

impl fmt::Debug for FileSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSink")
            .field("writer", &self.writer)
            .field("taken", &self.taken)
            .field("totals", &self.totals)
            .field("saved", &self.saved)
            .finish_non_exhaustive()
    }
}

impl Sink for FileSink {
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError> {
        self.taken += content.len() as u64;
        let writer = self.writer()?;
        for (run, of_run) in by_run(runs, content) {
            writer.pages(run, of_run)?;
        }
        Ok(())
    }

    fn take_pages(&mut self, pages: &mut PageBuffer) -> Result<(), SinkError> {
        self.taken += pages.content().len() as u64;
        Ok(self.writer()?.take_pages(pages)?)
    }

    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.remove(runs)
    }

    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.remove(runs)
    }

    fn wants_late_discards(&self) -> bool {
        true
    }

    fn end_round(&mut self, _round: u32) -> Result<(), SinkError> {
        self.writer()?.expect_rewrites();
        Ok(())
    }

    fn drain(&mut self) -> Result<(), SinkError> {
        Ok(self.writer()?.drain()?)
    }

    fn channels(&self) -> u32 {
        self.writer.as_ref().map_or(1, |it| it.writers().max(1))
    }

    fn bytes_by_channel(&self, bytes: &mut Vec<u64>) {
        let writer = self.writer.iter().filter(|it| it.writers() > 1);
        bytes.extend(writer.flat_map(SnapshotWriter::bytes_by_writer));
    }

    fn is_drained(&self) -> bool {
        (self.writer.as_ref()).is_none_or(SnapshotWriter::is_drained)
    }

    /// Without direct I/O everything is in the page cache then. The disk is waited for when the guest runs on: to wait for it here
    /// would take the disk's speed for that of the last pages, and a guest that writes faster than the disk would never be saved.
    ///
    /// The last round is not waited for at all: the threads have copies of its pages.
    fn barrier(&mut self) -> Result<(), SinkError> {
        match self.totals {
            Some(_) => Ok(()),
            None => self.drain(),
        }
    }

    fn state(&mut self, section: &StateSection) -> Result<(), SinkError> {
        self.state_bytes += section.bytes.len() as u64;
        let StateSection {
            name,
            version,
            bytes,
        } = section.clone();
        Ok(self.state.add(name, version, bytes)?)
    }

    fn commit(&mut self, totals: Totals) -> Result<(), SinkError> {
        let bytes = self.taken + self.state_bytes;
        self.totals = Some(Totals { bytes, ..totals });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.taken + self.state_bytes - self.waiting_bytes()
    }

    fn waiting_bytes(&self) -> u64 {
        // With the totals all counts.
        let writer = self.writer.as_ref().filter(|_| self.totals.is_none());
        writer.map_or(0, SnapshotWriter::waiting_bytes)
    }

    fn begin_switchover(&mut self, limit: Duration) {
        if let Some(writer) = &mut self.writer {
            writer.set_deadline(Instant::now().checked_add(limit));
        }
    }

    fn check(&mut self) -> Result<(), SinkError> {
        match &self.writer {
            Some(writer) => Ok(writer.check()?),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let totals = self.totals.ok_or(SinkError::Finished)?;
        let mut writer = self.writer.take().ok_or(SinkError::Finished)?;
        writer.set_deadline(None);
        self.saved = Some(writer.finish(&self.state, totals)?);
        Ok(())
    }
}
