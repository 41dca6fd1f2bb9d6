// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads a migration stream into guest memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use spec::PageRange;
use spec::stream::{PagesPrefix, RUN_BYTES, SectionHeader, SectionKind, StreamError, Totals, runs};

use super::error::ReceiveError;
use super::introduction::{self, Incoming};
use super::report::{ReceiveReport, ReceiveState, ReceiveStatus, unexpected};
use crate::memory::guest_memory::GuestMemory;
use crate::ownership::{Owner, OwnershipRecord};
use crate::panics::text_of;
use crate::vm::machine::DestinationMachine;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Heartbeats, SectionError};

/// The receiving end of a migration.
pub(crate) struct Receiver<'a> {
    input: SectionReader,
    out: SectionWriter,
    /// From the moment when the source is accepted.
    heartbeats: Option<Heartbeats>,
    ram: &'a dyn GuestMemory,
    ownership: &'a OwnershipRecord,
    observer: &'a mut dyn FnMut(&ReceiveStatus),
    status: ReceiveStatus,
    rounds: u64,
    /// The section of pages that is being received, at most [`SectionKind::max_length`] bytes.
    payload: Vec<u8>,
    began: Instant,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(
        source: Incoming,
        ram: &'a dyn GuestMemory,
        ownership: &'a OwnershipRecord,
        observer: &'a mut dyn FnMut(&ReceiveStatus),
    ) -> Self {
        ownership.await_guest(source.session, source.number);
        Self {
            input: source.input,
            out: source.out,
            heartbeats: None,
            ram,
            ownership,
            observer,
            status: ReceiveStatus {
                round: 1,
                ..ReceiveStatus::default()
            },
            rounds: 0,
            payload: Vec::new(),
            began: Instant::now(),
        }
    }

    pub(crate) fn receive(
        mut self,
        machine: &mut dyn DestinationMachine,
    ) -> Result<ReceiveReport, ReceiveError> {
        let result = catch_unwind(AssertUnwindSafe(|| self.receive_and_run(machine)))
            .unwrap_or_else(|panic| Err(ReceiveError::Panicked(text_of(&*panic))));
        let owner = self.ownership.settle();
        result.map_err(|error| {
            self.heartbeats = None;
            let error = match owner {
                Owner::Undecided => ReceiveError::Undecided(Box::new(error)),
                Owner::Here | Owner::There => error,
            };
            introduction::refuse(&mut self.input, &mut self.out, &error);
            error
        })
    }

    fn receive_and_run(
        &mut self,
        machine: &mut dyn DestinationMachine,
    ) -> Result<ReceiveReport, ReceiveError> {
        self.heartbeats = Some(Heartbeats::start(&self.out).map_err(SectionError::from)?);
        // Pages that are not sent are zero, so clear what an earlier attempt has left.
        for region in self.ram.layout().regions() {
            self.ram.discard(*region)?;
        }
        self.answer(SectionKind::Accept)?;
        self.enter(ReceiveState::Active);
        let state = self.memory(machine)?;
        self.enter(ReceiveState::Device);
        let loading = Instant::now();
        machine.load(&state)?;
        let load_ms = loading.elapsed().as_secs_f64() * 1000.0;
        self.take_over()?;
        machine.run().map_err(ReceiveError::Run)?;
        self.enter(ReceiveState::Completed);
        if let Err(error) = self.answer(SectionKind::Running) {
            // The guest runs here and is ours. The source will say `undecided`.
            log::warn!("the source cannot be told that the guest runs here: {error}");
        }
        Ok(ReceiveReport {
            received: self.status,
            total_ms: self.began.elapsed().as_secs_f64() * 1000.0,
            load_ms,
        })
    }

    /// Sends Ready and waits for the hand-over. If the link dies meanwhile, it is not known whether the source has handed the
    /// guest over.
    fn take_over(&mut self) -> Result<(), ReceiveError> {
        self.ownership.offer();
        let word = self.ready_and_word();
        match &word {
            Ok(()) => self.ownership.accept(),
            // The source sends Abort only while it owns the guest.
            Err(SectionError::Aborted(_)) => self.ownership.declined(),
            Err(_) => {}
        }
        Ok(word?)
    }

    fn ready_and_word(&mut self) -> Result<(), SectionError> {
        if let Err(error) = self.out.section(SectionKind::Ready, []) {
            // A source that has disconnected may have sent a reason before.
            self.input.check_peer()?;
            return Err(error.into());
        }
        self.enter(ReceiveState::Ready);
        self.input.expect(SectionKind::HandOver, "HandOver")
    }

    /// Receives everything up to the commit. Returns the machine's state.
    fn memory(&mut self, machine: &mut dyn DestinationMachine) -> Result<Vec<u8>, ReceiveError> {
        let mut state = None;
        loop {
            let header = self.input.header()?;
            if header.round != self.status.round {
                return Err(ReceiveError::Round {
                    expected: self.status.round,
                    found: header.round,
                });
            }
            match header.kind {
                SectionKind::Pages if state.is_none() => self.pages(&header)?,
                SectionKind::Zero if state.is_none() => {
                    self.status.pages_zero += self.make_zero(&header)?;
                }
                SectionKind::Discard if state.is_none() => {
                    self.status.pages_discarded += self.make_zero(&header)?;
                }
                SectionKind::RoundEnd if state.is_none() => {
                    self.input.payload(&header)?;
                    self.rounds += 1;
                    machine.check()?;
                    self.status.round = self.status.round.saturating_add(1);
                    self.answer(SectionKind::RoundReceived)?;
                }
                SectionKind::MachineState if state.is_none() => {
                    state = Some(self.input.payload(&header)?);
                }
                SectionKind::Commit => {
                    let Some(state) = state else {
                        return Err(unexpected(header.kind, "MachineState").into());
                    };
                    self.commit(&header)?;
                    return Ok(state);
                }
                found if state.is_some() => return Err(unexpected(found, "Commit").into()),
                found => return Err(unexpected(found, "memory").into()),
            }
            self.report();
        }
    }

    /// Writes the pages of a section into memory, if its checksum is right and all its runs are in guest memory.
    fn pages(&mut self, header: &SectionHeader) -> Result<(), ReceiveError> {
        let malformed = || SectionError::from(StreamError::Malformed(SectionKind::Pages));
        self.input.payload_into(header, &mut self.payload)?;
        let (prefix, rest) = (self.payload.split_first_chunk()).ok_or_else(malformed)?;
        let prefix = PagesPrefix::from_bytes(prefix, header.length).map_err(SectionError::from)?;
        let table_bytes = prefix.runs as usize * RUN_BYTES;
        let (table, mut content) = rest.split_at_checked(table_bytes).ok_or_else(malformed)?;
        let mut pages = 0;
        for run in runs(SectionKind::Pages, table) {
            let run = run.map_err(SectionError::from)?;
            self.ram.layout().check(run)?;
            pages += u128::from(run.count());
        }
        if pages != u128::from(prefix.pages) {
            return Err(malformed().into());
        }
        for run in runs(SectionKind::Pages, table) {
            let run = run.map_err(SectionError::from)?;
            // The runs have as many pages as the prefix says, and these fit a section.
            let bytes = run.bytes() as usize;
            let (of_run, after) = content.split_at_checked(bytes).ok_or_else(malformed)?;
            self.ram.write(run, of_run)?;
            content = after;
        }
        self.status.pages += u64::from(prefix.pages);
        Ok(())
    }

    /// Makes the runs of a section zero; returns their pages.
    fn make_zero(&mut self, header: &SectionHeader) -> Result<u64, ReceiveError> {
        let table = self.input.payload(header)?;
        let mut pages = 0;
        for run in runs(header.kind, &table) {
            let run: PageRange = run.map_err(SectionError::from)?;
            self.ram.discard(run)?;
            pages += run.count();
        }
        Ok(pages)
    }

    /// Compares the source's totals with what arrived.
    fn commit(&mut self, header: &SectionHeader) -> Result<(), ReceiveError> {
        let bytes = self.input.bytes_before_section();
        let payload = self.input.payload(header)?;
        let sent = Totals::from_bytes(&payload).map_err(SectionError::from)?;
        let received = Totals {
            pages_sent: self.status.pages,
            pages_zero: self.status.pages_zero,
            pages_discarded: self.status.pages_discarded,
            rounds: self.rounds,
            bytes,
        };
        if sent == received {
            Ok(())
        } else {
            Err(ReceiveError::Totals { sent, received })
        }
    }

    fn answer(&mut self, kind: SectionKind) -> Result<(), ReceiveError> {
        let sent = self.out.section(kind, []);
        Ok(sent.map_err(SectionError::from)?)
    }

    fn enter(&mut self, state: ReceiveState) {
        self.status.status = state;
        self.report();
    }

    fn report(&mut self) {
        self.status.bytes = self.input.bytes();
        (self.observer)(&self.status);
    }
}
