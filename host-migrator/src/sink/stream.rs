// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration stream as a sink (`spec/migration-stream.md`).
//!
//! It goes over one connection. The destination takes section after section, so nothing overtakes what was sent before.

use std::time::Duration;

use spec::PageRange;
use spec::stream::{PagesPrefix, SectionKind, StatePrefix, Totals, run_to_bytes};

use super::link::Link;
use super::{Sink, SinkError};
use crate::vm::state::StateSection;

impl Sink for Link {
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError> {
        let pages = runs.iter().map(|run| run.count()).sum::<u64>();
        let prefix = PagesPrefix {
            runs: runs.len() as u32,
            pages: pages as u32,
        };
        self.table.clear();
        self.table.extend(prefix.to_bytes());
        self.table
            .extend(runs.iter().flat_map(|run| run_to_bytes(*run)));
        Ok(self
            .out
            .section(SectionKind::Pages, [&self.table, content])?)
    }

    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.runs(SectionKind::Zero, runs)
    }

    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.runs(SectionKind::Discard, runs)
    }

    fn end_round(&mut self, round: u32) -> Result<(), SinkError> {
        self.out.section(SectionKind::RoundEnd, [])?;
        // What follows is counted to the next round, the machine's state after the last one included.
        self.out.set_round(round + 1);
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), SinkError> {
        Ok(self
            .peer
            .expect(SectionKind::RoundReceived, "RoundReceived")?)
    }

    fn state(&mut self, section: &StateSection) -> Result<(), SinkError> {
        let prefix = StatePrefix {
            version: section.version,
            name_bytes: section.name.len() as u32,
        };
        let parts = [&prefix.to_bytes(), section.name.as_bytes(), &section.bytes];
        Ok(self.out.section(SectionKind::MachineState, parts)?)
    }

    fn commit(&mut self, totals: Totals) -> Result<(), SinkError> {
        Ok(self.out.commit(totals)?)
    }

    fn bytes(&self) -> u64 {
        self.out.bytes()
    }

    fn begin_switchover(&mut self, limit: Duration) {
        // Bytes of the destination do not extend it, because the guest is stopped.
        self.stop.set_deadline(limit, "the switchover");
    }

    fn check(&mut self) -> Result<(), SinkError> {
        self.stop.check_deadline()?;
        Ok(self.peer.check_peer()?)
    }
}

impl Link {
    fn runs(&mut self, kind: SectionKind, runs: &[PageRange]) -> Result<(), SinkError> {
        self.table.clear();
        self.table
            .extend(runs.iter().flat_map(|run| run_to_bytes(*run)));
        Ok(self.out.section(kind, [&self.table])?)
    }
}
