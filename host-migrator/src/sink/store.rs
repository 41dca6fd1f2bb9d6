// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A page store of this process as a sink.

use std::fmt;

use spec::PageRange;
use spec::stream::Totals;

use super::{Sink, SinkError, by_run};
use crate::memory::page_store::PageStore;
use crate::vm::state::StateSection;

/// Places pages in a store, and keeps what belongs to them.
pub struct StoreSink<'a> {
    store: &'a dyn PageStore,
    bytes: u64,
    state: Vec<StateSection>,
    totals: Option<Totals>,
}

impl<'a> StoreSink<'a> {
    /// Into `store`, which is cleared.
    ///
    /// # Errors
    /// [`SinkError::Ram`] if it cannot be cleared.
    pub fn new(store: &'a dyn PageStore) -> Result<Self, SinkError> {
        store.clear()?;
        Ok(Self {
            store,
            bytes: 0,
            state: Vec::new(),
            totals: None,
        })
    }

    /// The sections of the machine's state that have come.
    pub fn machine_state(&self) -> &[StateSection] {
        &self.state
    }

    /// What was sent, if the guest is whole.
    pub fn totals(&self) -> Option<Totals> {
        self.totals
    }

    fn make_zero(&self, runs: &[PageRange]) -> Result<(), SinkError> {
        let mut runs = runs.iter();
        Ok(runs.try_for_each(|run| self.store.make_zero(*run))?)
    }
}

impl fmt::Debug for StoreSink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSink")
            .field("memory", self.store.layout())
            .field("bytes", &self.bytes)
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}

impl Sink for StoreSink<'_> {
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError> {
        self.bytes += content.len() as u64;
        for (run, of_run) in by_run(runs, content) {
            self.store.place(run, of_run)?;
        }
        Ok(())
    }

    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.make_zero(runs)
    }

    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.make_zero(runs)
    }

    fn wants_late_discards(&self) -> bool {
        true
    }

    fn end_round(&mut self, _round: u32) -> Result<(), SinkError> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn state(&mut self, section: &StateSection) -> Result<(), SinkError> {
        self.bytes += section.bytes.len() as u64;
        self.state.push(section.clone());
        Ok(())
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
}
