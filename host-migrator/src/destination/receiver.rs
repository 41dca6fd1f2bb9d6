// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads a migration stream: which section comes when, and who has the guest. `placing.rs` places what it brings.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Instant;

use spec::stream::{SectionHeader, SectionKind, Totals, state_from_bytes};

use super::channels::{Channels, Shared};
use super::error::ReceiveError;
use super::introduction::Incoming;
use super::joining::Joined;
use super::lent;
use super::overlap::Overlap;
use super::placing::Placer;
use super::postcopy::{Early, PostcopyOptions};
use super::refusal::refuse;
use super::report::{LAST_WORDS, ReceiveReport, ReceiveState, ReceiveStatus, unexpected};
use crate::memory::page_store::PageStore;
use crate::ownership::{Owner, OwnershipRecord};
use crate::panics::{attempt, text_of};
use crate::vm::error::MachineError;
use crate::vm::machine::DestinationMachine;
use crate::vm::state::MachineState;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Heartbeats, SectionError, StopFlag};

/// The receiving end of a migration.
pub(crate) struct Receiver<'a> {
    input: SectionReader,
    out: SectionWriter,
    stop: StopFlag,
    heartbeats: Option<Heartbeats>,
    channels: Vec<Joined>,
    /// For a source that may hand the guest over before its memory.
    early: Option<Early>,
    postcopy: Option<PostcopyOptions>,
    /// The source lends its memory.
    local: bool,
    /// Everything travels in TLS.
    tls: bool,
    store: &'a dyn PageStore,
    ownership: &'a OwnershipRecord,
    observer: &'a mut dyn FnMut(&ReceiveStatus),
    status: ReceiveStatus,
    rounds: u64,
    /// Pages that have arrived on the control connection.
    pages: u64,
    began: Instant,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(
        source: Incoming,
        store: &'a dyn PageStore,
        ownership: &'a OwnershipRecord,
        observer: &'a mut dyn FnMut(&ReceiveStatus),
        postcopy: Option<PostcopyOptions>,
    ) -> Self {
        ownership.await_guest(source.session, source.number);
        let nonce = source.nonce.filter(|_| !source.lanes.is_empty());
        let early = nonce.map(|nonce| Early::new(nonce, source.wanted, source.lanes, store));
        Self {
            input: source.input,
            out: source.out,
            stop: source.stop,
            heartbeats: source.heartbeats,
            channels: source.channels,
            early,
            postcopy,
            local: source.local,
            tls: source.tls,
            store,
            ownership,
            observer,
            status: ReceiveStatus {
                round: 1,
                ..ReceiveStatus::default()
            },
            rounds: 0,
            pages: 0,
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
            refuse(&mut self.input, &mut self.out, &error);
            if self.local && owner == Owner::There {
                attempt("give lent memory back", || {
                    machine.give_memory_back();
                    Ok::<_, MachineError>(())
                });
            }
            error
        })
    }

    fn receive_and_run(
        &mut self,
        machine: &mut dyn DestinationMachine,
    ) -> Result<ReceiveReport, ReceiveError> {
        if let Some(early) = &mut self.early {
            // Refused before any memory comes, if it cannot be done here.
            early.prepare(self.postcopy.is_some())?;
        }
        let mut state = match self.local {
            true => self.lent_memory(machine)?,
            false => {
                let placer = Placer::new(self.store)?;
                self.enter(ReceiveState::Active);
                self.memory(placer, machine)?
            }
        };
        self.enter(ReceiveState::Device);
        let early = self.early.take().filter(Early::is_promised);
        let postcopy = match (early, self.postcopy.take()) {
            (Some(early), Some(options)) => Some(early.begin(self.store, machine, options)?),
            _ => None,
        };
        let result = self.load_and_run(machine, &mut state);
        if let (Err(_), Some(postcopy), Owner::There) =
            (&result, &postcopy, self.ownership.get().owner)
            && self.ownership.is_certain()
        {
            postcopy.end();
        }
        let load_ms = result?;
        Ok(ReceiveReport {
            received: self.status,
            tls: self.tls,
            total_ms: self.began.elapsed().as_secs_f64() * 1000.0,
            load_ms,
        })
    }

    /// Loads the machine, takes the guest over and runs it. Returns the milliseconds that loading took.
    fn load_and_run(
        &mut self,
        machine: &mut dyn DestinationMachine,
        state: &mut MachineState,
    ) -> Result<f64, ReceiveError> {
        let loading = Instant::now();
        machine.load(state)?;
        state.finish()?;
        let load_ms = loading.elapsed().as_secs_f64() * 1000.0;
        self.take_over()?;
        machine.run().map_err(ReceiveError::Run)?;
        self.enter(ReceiveState::Completed);
        if let Err(error) = self.answer(SectionKind::Running) {
            // The guest runs here and is ours. The source will say `undecided`.
            log::warn!("the source cannot be told that the guest runs here: {error}");
        }
        Ok(load_ms)
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

    /// Receives everything up to the commit, on all channels. Returns the machine's state.
    fn memory(
        &mut self,
        placer: Placer<'_>,
        machine: &mut dyn DestinationMachine,
    ) -> Result<MachineState, ReceiveError> {
        let joined = mem::take(&mut self.channels);
        let shared = Shared::new(joined.len(), self.stop.clone());
        let placer = shared.placer(placer);
        thread::scope(|scope| {
            let channels = Channels::start(scope, joined, placer, &shared)?;
            let mut overlap = Overlap::start(scope, placer)?;
            let state = self.sections(placer, &mut overlap, machine, &shared);
            let (state, totals) = state
                .map_err(|error| overlap.finish().err().unwrap_or(error))
                .map_err(|error| self.first_failure(error, &shared))?;
            channels.finish()?;
            self.commit(totals, &shared)?;
            Ok(state)
        })
    }

    /// Reads the control connection up to the commit. Returns the machine's state and the source's totals.
    fn sections(
        &mut self,
        placer: Placer<'_>,
        overlap: &mut Overlap<'_>,
        machine: &mut dyn DestinationMachine,
        channels: &Shared,
    ) -> Result<(MachineState, Committed), ReceiveError> {
        let mut state = MachineState::default();
        let mut drains = 0;
        loop {
            let Some(header) = self.input.header_or_heartbeat()? else {
                // While channels carry the pages, nothing but heartbeats comes here.
                if state.sections().is_empty() {
                    machine.check()?;
                }
                self.report(channels);
                continue;
            };
            self.check_round(&header)?;
            if state.sections().is_empty() {
                machine.check()?;
            }
            match header.kind {
                SectionKind::Pages
                | SectionKind::CompressedPages
                | SectionKind::Zero
                | SectionKind::Discard
                    if state.sections().is_empty() =>
                {
                    self.place(placer, overlap, &header)?;
                }
                SectionKind::Drain if state.sections().is_empty() => {
                    self.input.payload(&header)?;
                    overlap.finish()?;
                    drains += 1;
                    channels.wait_for_drain(drains)?;
                    self.answer(SectionKind::Drained)?;
                }
                SectionKind::RoundEnd if state.sections().is_empty() => {
                    self.input.payload(&header)?;
                    overlap.finish()?;
                    self.rounds += 1;
                    self.status.round = self.status.round.saturating_add(1);
                    channels.begin_round(self.status.round);
                    self.answer(SectionKind::RoundReceived)?;
                }
                SectionKind::Promised if state.sections().is_empty() => {
                    let table = self.input.payload(&header)?;
                    let early = self.early.as_mut().ok_or(ReceiveError::NoPostcopy)?;
                    early.promise(placer, &table)?;
                }
                SectionKind::MachineState => self.state(&header, &mut state)?,
                SectionKind::Commit => {
                    overlap.finish()?;
                    self.pages = overlap.pages();
                    return Ok((state, self.committed(&header)?));
                }
                found if !state.sections().is_empty() => {
                    return Err(unexpected(found, "Commit").into());
                }
                found => return Err(unexpected(found, "memory").into()),
            }
            self.pages = overlap.pages();
            self.report(channels);
        }
    }

    /// Takes the memory that the source lends, and receives everything up to the commit. Returns the machine's state.
    fn lent_memory(
        &mut self,
        machine: &mut dyn DestinationMachine,
    ) -> Result<MachineState, ReceiveError> {
        let channels = Shared::new(0, self.stop.clone());
        self.status.lent_bytes = lent::take(&mut self.input, self.store.layout(), machine)?;
        self.answer(SectionKind::Mapped)?;
        self.enter(ReceiveState::Active);
        let mut state = MachineState::default();
        loop {
            let header = self.input.header_or_heartbeat()?;
            if state.sections().is_empty() {
                machine.check()?;
            }
            let Some(header) = header else {
                continue;
            };
            self.check_round(&header)?;
            match header.kind {
                SectionKind::MachineState => self.state(&header, &mut state)?,
                SectionKind::Commit => {
                    let sent = self.committed(&header)?;
                    self.commit(sent, &channels)?;
                    return Ok(state);
                }
                found => return Err(unexpected(found, "the machine's state").into()),
            }
        }
    }

    /// Makes sure that a section belongs to the round that runs.
    fn check_round(&self, header: &SectionHeader) -> Result<(), ReceiveError> {
        if header.round == self.status.round {
            return Ok(());
        }
        Err(ReceiveError::Round {
            expected: self.status.round,
            found: header.round,
        })
    }

    /// The control connection was interrupted or failed with `error`: why, if a channel failed first. A source that ends the
    /// migration closes its channels, and says on the control connection why.
    fn first_failure(&mut self, error: ReceiveError, channels: &Shared) -> ReceiveError {
        let Some(failure) = channels.take_failure() else {
            return error;
        };
        if let ReceiveError::Stream(SectionError::Aborted(_)) = error {
            return error;
        }
        self.stop.set_deadline(LAST_WORDS, "the source's reason");
        let told = self.input.reason();
        self.stop.clear_deadline();
        match told {
            Err(told @ SectionError::Aborted(_)) => told.into(),
            _ => failure,
        }
    }

    /// Receives a section about pages, and places these.
    fn place(
        &mut self,
        placer: Placer<'_>,
        overlap: &mut Overlap<'_>,
        header: &SectionHeader,
    ) -> Result<(), ReceiveError> {
        if let SectionKind::Pages | SectionKind::CompressedPages = header.kind {
            let mut payload = overlap.buffer()?;
            self.input.payload_into(header, &mut payload)?;
            return overlap.place(header.kind, payload);
        }
        let table = self.input.payload(header)?;
        // What came before may be about the same pages.
        overlap.finish()?;
        let pages = placer.make_zero(header.kind, &table)?;
        match header.kind {
            SectionKind::Zero => self.status.pages_zero += pages,
            _ => self.status.pages_discarded += pages,
        }
        Ok(())
    }

    /// Receives a section of the machine's state.
    fn state(
        &mut self,
        header: &SectionHeader,
        state: &mut MachineState,
    ) -> Result<(), ReceiveError> {
        let payload = self.input.payload(header)?;
        let (version, name, bytes) = state_from_bytes(&payload).map_err(SectionError::from)?;
        Ok(state.add(name, version, bytes.into())?)
    }

    /// Receives the source's totals.
    fn committed(&mut self, header: &SectionHeader) -> Result<Committed, ReceiveError> {
        let bytes = self.input.bytes_before_section();
        let payload = self.input.payload(header)?;
        let totals = Totals::from_bytes(&payload).map_err(SectionError::from)?;
        Ok(Committed { totals, bytes })
    }

    /// Compares the source's totals with what arrived.
    fn commit(&mut self, sent: Committed, channels: &Shared) -> Result<(), ReceiveError> {
        self.report(channels);
        let received = Totals {
            pages_sent: self.status.pages,
            pages_zero: self.status.pages_zero,
            pages_discarded: self.status.pages_discarded,
            rounds: self.rounds,
            bytes: sent.bytes + channels.drained_bytes(),
        };
        if sent.totals == received {
            Ok(())
        } else {
            let sent = sent.totals;
            Err(ReceiveError::Totals { sent, received })
        }
    }

    fn answer(&mut self, kind: SectionKind) -> Result<(), ReceiveError> {
        let sent = self.out.section(kind, []);
        Ok(sent.map_err(SectionError::from)?)
    }

    fn enter(&mut self, state: ReceiveState) {
        self.status.status = state;
        (self.observer)(&self.status);
    }

    fn report(&mut self, channels: &Shared) {
        self.status.pages = self.pages + channels.pages();
        self.status.bytes = self.input.bytes() + channels.bytes();
        (self.observer)(&self.status);
    }
}

/// What the source says it has sent.
struct Committed {
    totals: Totals,
    /// Bytes that had arrived on the control connection before.
    bytes: u64,
}
