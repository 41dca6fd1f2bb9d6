// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads a migration stream into guest memory.

use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use spec::stream::{
    Greeting, PagesPrefix, RUN_BYTES, STREAM_HEADER_BYTES, SectionHeader, SectionKind, StreamError,
    StreamHeader, Totals, runs,
};
use spec::{PAGE_SIZE, PageRange};

use super::{ReceiveError, ReceiveReport, ReceiveState, ReceiveStatus};
use crate::machine::DestinationMachine;
use crate::ram::GuestRam;
use crate::transport::sections::{SectionReader, SectionWriter};
use crate::transport::{Channel, Heartbeats, SectionError};

/// How long a source that was told of an error may go on sending.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One migration's receiving end.
pub(crate) struct Receiver<'a> {
    input: SectionReader,
    out: SectionWriter,
    /// From the greeting on.
    heartbeats: Option<Heartbeats>,
    ram: &'a GuestRam,
    observer: &'a mut dyn FnMut(&ReceiveStatus),
    status: ReceiveStatus,
    rounds: u64,
    /// The section of pages that is being received, at most [`SectionKind::max_length`] bytes.
    payload: Vec<u8>,
    began: Instant,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(
        channel: Channel,
        ram: &'a GuestRam,
        observer: &'a mut dyn FnMut(&ReceiveStatus),
    ) -> Self {
        let (reader, writer) = channel.split();
        Self {
            input: SectionReader::new(reader),
            out: SectionWriter::new(writer),
            heartbeats: None,
            ram,
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
        let result = self.receive_and_run(machine);
        if let Err(error) = &result {
            self.heartbeats = None;
            self.out.abort(&error.to_string());
            self.out.finish();
            self.input.drain(LAST_WORDS);
        }
        result
    }

    fn receive_and_run(
        &mut self,
        machine: &mut dyn DestinationMachine,
    ) -> Result<ReceiveReport, ReceiveError> {
        // What is not sent is zero, whatever an attempt before has left.
        for region in self.ram.regions() {
            self.ram.discard(*region)?;
        }
        self.greet(machine)?;
        self.enter(ReceiveState::Active);
        let state = self.memory()?;
        self.enter(ReceiveState::Device);
        let loading = Instant::now();
        machine.load(&state)?;
        let load_ms = loading.elapsed().as_secs_f64() * 1000.0;
        self.answer(SectionKind::Ready)?;
        self.enter(ReceiveState::Ready);
        self.input.expect(SectionKind::HandOver, "HandOver")?;
        machine.run().map_err(ReceiveError::Run)?;
        self.enter(ReceiveState::Completed);
        if let Err(error) = self.answer(SectionKind::Running) {
            // The guest runs and is ours; the source will say that it does not know.
            log::warn!("the source cannot be told that the guest runs here: {error}");
        }
        Ok(ReceiveReport {
            received: self.status,
            total_ms: self.began.elapsed().as_secs_f64() * 1000.0,
            load_ms,
        })
    }

    /// Makes sure that both sides mean the same stream, the same memory and the same machine.
    fn greet(&mut self, machine: &mut dyn DestinationMachine) -> Result<(), ReceiveError> {
        let mut session = [0; 8];
        getrandom(&mut session, GetRandomFlags::empty())
            .map_err(|error| ReceiveError::Random(error.into()))?;
        let session = u64::from_le_bytes(session);
        let greeting = Greeting { session }.to_bytes();
        self.out.start(&greeting).map_err(SectionError::from)?;
        self.heartbeats = Some(Heartbeats::start(&self.out).map_err(SectionError::from)?);
        let bytes: [u8; STREAM_HEADER_BYTES] = self.input.start().map_err(SectionError::from)?;
        let header = StreamHeader::from_bytes(&bytes).map_err(SectionError::from)?;
        if header.session != session {
            return Err(ReceiveError::Session);
        }
        let layout = self.input.header()?;
        if layout.kind != SectionKind::Layout {
            return Err(unexpected(layout.kind, "Layout").into());
        }
        let theirs = self.input.payload(&layout)?;
        self.check_layout(&header, &theirs)?;
        let description = self.input.header()?;
        if description.kind != SectionKind::Description {
            return Err(unexpected(description.kind, "Description").into());
        }
        let theirs = self.input.payload(&description)?;
        machine.judge(&theirs).map_err(ReceiveError::Unfit)?;
        self.answer(SectionKind::Accept)
    }

    fn check_layout(&self, header: &StreamHeader, theirs: &[u8]) -> Result<(), ReceiveError> {
        let ours = self.ram.regions().len();
        if theirs.len() != header.regions as usize * 16 || header.regions as usize != ours {
            return Err(ReceiveError::Layout(format!(
                "{} regions there, {ours} here",
                header.regions
            )));
        }
        let bytes = self.ram.pages() * PAGE_SIZE;
        if header.ram_bytes != bytes {
            return Err(ReceiveError::Layout(format!(
                "{} bytes there, {bytes} here",
                header.ram_bytes
            )));
        }
        if theirs != self.ram.layout() {
            return Err(ReceiveError::Layout("its regions lie elsewhere".into()));
        }
        Ok(())
    }

    /// Receives everything up to the commit. Returns the machine's state.
    fn memory(&mut self) -> Result<Vec<u8>, ReceiveError> {
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

    /// Writes the pages of a section into memory, once its checksum is right and all its runs are memory.
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
            self.ram.check(run)?;
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

fn unexpected(found: SectionKind, expected: &'static str) -> SectionError {
    SectionError::Unexpected { found, expected }
}
