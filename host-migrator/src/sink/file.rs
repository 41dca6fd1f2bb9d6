// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot file as a sink.

use std::fmt;

use spec::PageRange;
use spec::stream::Totals;

use super::{Sink, SinkError, by_run};
use crate::memory::layout::Layout;
use crate::snapshot::{Saved, SnapshotTarget, SnapshotWriter, Storage, open_storage};
use crate::vm::state::{MachineState, StateSection};

/// Writes a guest into a snapshot file. The guest runs on as soon as its last pages are written; what makes the snapshot
/// complete follows ([`Sink::finish`]). If it is dropped before, there is no new snapshot.
pub struct FileSink {
    /// Until the snapshot is complete.
    writer: Option<SnapshotWriter>,
    bytes: u64,
    state: MachineState,
    totals: Option<Totals>,
    saved: Option<Saved>,
}

impl FileSink {
    /// A snapshot at `target`, of a guest whose memory has this `layout` and which needs the machine of this `description`
    /// ([`SourceMachine::describe`](crate::SourceMachine::describe)).
    ///
    /// # Errors
    /// [`SinkError::Snapshot`] if no file can hold such a guest, or the file cannot be written.
    pub fn create(
        target: &SnapshotTarget,
        layout: &Layout,
        description: &[u8],
    ) -> Result<Self, SinkError> {
        Self::new(open_storage(target)?, layout, description)
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
            bytes: 0,
            state: MachineState::default(),
            totals: None,
            saved: None,
        })
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
            .field("bytes", &self.bytes)
            .field("totals", &self.totals)
            .field("saved", &self.saved)
            .finish_non_exhaustive()
    }
}

impl Sink for FileSink {
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError> {
        self.bytes += content.len() as u64;
        let writer = self.writer()?;
        for (run, of_run) in by_run(runs, content) {
            writer.pages(run, of_run)?;
        }
        Ok(())
    }

    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.remove(runs)
    }

    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.remove(runs)
    }

    fn end_round(&mut self, _round: u32) -> Result<(), SinkError> {
        Ok(())
    }

    /// Everything is in the page cache. The disk is waited for when the guest runs on: to wait for it here would take the disk's speed
    /// for that of the last pages, and a guest that writes faster than the disk would never be saved.
    fn barrier(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn state(&mut self, section: &StateSection) -> Result<(), SinkError> {
        self.bytes += section.bytes.len() as u64;
        let StateSection {
            name,
            version,
            bytes,
        } = section.clone();
        Ok(self.state.add(name, version, bytes)?)
    }

    fn commit(&mut self, totals: Totals) -> Result<(), SinkError> {
        let bytes = self.bytes;
        self.totals = Some(Totals { bytes, ..totals });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn check(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let totals = self.totals.ok_or(SinkError::Finished)?;
        let writer = self.writer.take().ok_or(SinkError::Finished)?;
        self.saved = Some(writer.finish(&self.state, totals)?);
        Ok(())
    }
}
