// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection that says who it is: the greeting, up to the source's whole introduction.

use rustix::rand::{GetRandomFlags, getrandom};
use spec::PAGE_SIZE;
use spec::stream::{Greeting, STREAM_HEADER_BYTES, SectionKind, StreamHeader};

use super::receiver::Receiver;
use super::{ReceiveError, ReceiveReport, ReceiveStatus, unexpected, waiting};
use crate::memory::guest_memory::GuestMemory;
use crate::ownership::OwnershipRecord;
use crate::vm::machine::DestinationMachine;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Connection, Listener, SectionError};

/// A source whose guest fits: it waits to be accepted. Nothing has been touched for it yet.
#[derive(Debug)]
pub struct Incoming {
    pub(crate) input: SectionReader,
    pub(crate) out: SectionWriter,
    pub(crate) session: u64,
    /// How often its guest has changed hands.
    pub(crate) number: u64,
    /// What its guest needs of the machine, in the VMM's own format.
    description: Vec<u8>,
}

impl Incoming {
    /// Waits at `listener` until a source whose guest fits `ram` and `machine` has introduced itself. Connections of anybody else
    /// are dropped: each has a short time, and many may be there at once.
    ///
    /// # Errors
    /// [`ReceiveError`] if nobody can be waited for.
    pub fn wait(
        listener: &Listener,
        ram: &dyn GuestMemory,
        machine: &mut dyn DestinationMachine,
    ) -> Result<Self, ReceiveError> {
        waiting::wait(listener, &Shape::of(ram), machine)
    }

    /// Hears out the only one that there is.
    ///
    /// # Errors
    /// [`ReceiveError`] if it is no source, or its guest does not fit; it has been told.
    pub fn greet(
        channel: Connection,
        ram: &dyn GuestMemory,
        machine: &mut dyn DestinationMachine,
    ) -> Result<Self, ReceiveError> {
        let mut source = Self::hear(channel, &Shape::of(ram), &|| ())?;
        match source.judged_by(machine) {
            Ok(()) => Ok(source),
            Err(error) => {
                source.refuse(&error);
                Err(error)
            }
        }
    }

    /// Has `machine` say whether it can take the guest.
    pub(super) fn judged_by(
        &self,
        machine: &mut dyn DestinationMachine,
    ) -> Result<(), ReceiveError> {
        machine
            .judge(&self.description)
            .map_err(ReceiveError::Unfit)
    }

    /// Tells the source why its guest is not received.
    pub(super) fn refuse(&mut self, error: &ReceiveError) {
        refuse(&mut self.input, &mut self.out, error);
    }

    /// Receives the guest into `ram`, whatever that held before, and runs it in `machine` when the source has handed
    /// it over. `observer` is called after every section.
    ///
    /// # Errors
    /// [`ReceiveError`]. The guest does not run here. `ownership` says whether it is gone: if the owner is not
    /// [`Owner::There`](crate::Owner::There), the machine has the whole guest and must keep it.
    pub fn receive(
        self,
        ram: &dyn GuestMemory,
        machine: &mut dyn DestinationMachine,
        ownership: &OwnershipRecord,
        observer: &mut dyn FnMut(&ReceiveStatus),
    ) -> Result<ReceiveReport, ReceiveError> {
        Receiver::new(self, ram, ownership, observer).receive(machine)
    }

    /// Hears a connection out. `speaks` is called when it has sent a valid header.
    pub(super) fn hear(
        channel: Connection,
        shape: &Shape,
        speaks: &dyn Fn(),
    ) -> Result<Self, ReceiveError> {
        let (reader, writer) = channel.split();
        let mut input = SectionReader::new(reader);
        let mut out = SectionWriter::new(writer);
        match introduction(&mut input, &mut out, shape, speaks) {
            Ok((header, description)) => Ok(Self {
                input,
                out,
                session: header.session,
                number: header.number,
                description,
            }),
            Err(error) => {
                refuse(&mut input, &mut out, &error);
                Err(error)
            }
        }
    }
}

/// Says why, so that it arrives.
pub(super) fn refuse(input: &mut SectionReader, out: &mut SectionWriter, error: &ReceiveError) {
    out.abort(&error.to_string());
    out.finish();
    input.drain(super::LAST_WORDS);
}

/// What a source must have to fit.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    bytes: u64,
    layout: Vec<u8>,
    regions: usize,
}

impl Shape {
    fn of(ram: &dyn GuestMemory) -> Self {
        Self {
            bytes: ram.layout().pages() * PAGE_SIZE,
            layout: ram.layout().to_bytes(),
            regions: ram.layout().regions().len(),
        }
    }

    fn check(&self, header: &StreamHeader, theirs: &[u8]) -> Result<(), ReceiveError> {
        let ours = self.regions;
        if theirs.len() != header.regions as usize * 16 || header.regions as usize != ours {
            return Err(ReceiveError::Layout(format!(
                "{} regions there, {ours} here",
                header.regions
            )));
        }
        if header.ram_bytes != self.bytes {
            return Err(ReceiveError::Layout(format!(
                "{} bytes there, {} here",
                header.ram_bytes, self.bytes
            )));
        }
        if theirs != self.layout {
            return Err(ReceiveError::Layout("its regions lie elsewhere".into()));
        }
        Ok(())
    }
}

/// Makes sure that both sides mean the same stream and the same memory.
fn introduction(
    input: &mut SectionReader,
    out: &mut SectionWriter,
    shape: &Shape,
    speaks: &dyn Fn(),
) -> Result<(StreamHeader, Vec<u8>), ReceiveError> {
    let mut session = [0; 8];
    getrandom(&mut session, GetRandomFlags::empty())
        .map_err(|error| ReceiveError::Random(error.into()))?;
    let session = u64::from_le_bytes(session);
    let greeting = Greeting { session }.to_bytes();
    out.start(&greeting).map_err(SectionError::from)?;
    let bytes: [u8; STREAM_HEADER_BYTES] = input.start().map_err(SectionError::from)?;
    let header = StreamHeader::from_bytes(&bytes).map_err(SectionError::from)?;
    if header.session != session {
        return Err(ReceiveError::Session);
    }
    speaks();
    let layout = input.header()?;
    if layout.kind != SectionKind::Layout {
        return Err(unexpected(layout.kind, "Layout").into());
    }
    let theirs = input.payload(&layout)?;
    shape.check(&header, &theirs)?;
    let description = input.header()?;
    if description.kind != SectionKind::Description {
        return Err(unexpected(description.kind, "Description").into());
    }
    Ok((header, input.payload(&description)?))
}
