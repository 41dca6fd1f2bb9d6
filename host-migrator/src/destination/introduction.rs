// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection that says who it is: the greeting, up to the source's whole introduction.

use rustix::rand::{GetRandomFlags, getrandom};
use spec::PAGE_SIZE;
use spec::stream::{Greeting, STREAM_HEADER_BYTES, SectionKind, StreamHeader};

use super::error::ReceiveError;
use super::report::{LAST_WORDS, unexpected};
use crate::memory::page_store::PageStore;
use crate::vm::machine::DestinationMachine;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Connection, SectionError};

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
    input.drain(LAST_WORDS);
}

/// What a source must have to fit.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    bytes: u64,
    layout: Vec<u8>,
    regions: usize,
}

impl Shape {
    pub(super) fn of(store: &dyn PageStore) -> Self {
        Self {
            bytes: store.layout().pages() * PAGE_SIZE,
            layout: store.layout().to_bytes(),
            regions: store.layout().regions().len(),
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
