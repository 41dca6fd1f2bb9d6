// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection that says who it is: the greeting, up to the source's whole introduction.

use rustix::rand::{GetRandomFlags, getrandom};
use spec::PAGE_SIZE;
use spec::stream::{
    ChannelHeader, Greeting, Introduction, Nonce, STREAM_HEADER_BYTES, SectionKind, StreamHeader,
};

use super::error::ReceiveError;
use super::joining::{Joined, Joining};
use super::refusal::refuse;
use crate::memory::page_store::PageStore;
use crate::vm::machine::DestinationMachine;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Connection, Heartbeats, Redial, SectionError, StopFlag};

/// A source whose guest fits, and its channels. Nothing has been touched for it yet.
#[derive(Debug)]
pub struct Incoming {
    pub(super) input: SectionReader,
    pub(super) out: SectionWriter,
    /// Ends all waits for the source.
    pub(super) stop: StopFlag,
    pub(super) redial: Redial,
    /// From the moment when the source is accepted.
    pub(super) heartbeats: Option<Heartbeats>,
    /// Everything travels in TLS.
    pub(super) tls: bool,
    pub(super) session: u64,
    /// How often its guest has changed hands.
    pub(super) number: u64,
    /// How many channels are to join.
    pub(super) wanted: u32,
    /// How many lanes are to join besides them, for a postcopy.
    pub(super) wanted_lanes: u32,
    /// The secret of the session, from the moment when the source is accepted.
    pub(super) nonce: Option<Nonce>,
    /// It lends its memory.
    pub(super) local: bool,
    /// Those that have joined, by their numbers.
    pub(super) channels: Vec<Joined>,
    /// The lanes that have joined.
    pub(super) lanes: Vec<Joined>,
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
        self.heartbeats = None;
        refuse(&mut self.input, &mut self.out, error);
    }
}

/// Who has introduced itself.
#[derive(Debug)]
pub(super) enum Heard {
    Source(Box<Incoming>),
    Channel(Joining),
}

/// Hears a connection out. `speaks` is called when it has shown a certificate or sent a valid header.
pub(super) fn hear(
    mut connection: Connection,
    shape: &Shape,
    speaks: &dyn Fn(),
) -> Result<Heard, ReceiveError> {
    let (stop, closer) = (connection.stop_flag(), connection.closer());
    connection.secure().map_err(SectionError::from)?;
    let tls = connection.is_encrypted();
    if tls {
        speaks();
    }
    let redial = Redial::of(&mut connection);
    let passes_files = connection.passes_files();
    let (reader, writer) = connection.split().map_err(SectionError::from)?;
    let mut input = SectionReader::new(reader);
    let mut out = SectionWriter::new(writer);
    let introduced = greeted(&mut input, &mut out).and_then(|introduced| {
        speaks();
        Ok(match introduced {
            Introduction::Source(header) if header.local && !passes_files => {
                return Err(ReceiveError::NotLocal);
            }
            Introduction::Source(header) => {
                let description = described(&mut input, &header, shape)?;
                Introduced::Source(header, description)
            }
            Introduction::Channel(header) => Introduced::Channel(header),
        })
    });
    match introduced {
        Ok(Introduced::Source(header, description)) => Ok(Heard::Source(Box::new(Incoming {
            input,
            out,
            stop,
            redial,
            heartbeats: None,
            tls,
            session: header.session,
            number: header.number,
            wanted: header.channels,
            wanted_lanes: header.lanes,
            nonce: None,
            local: header.local,
            channels: Vec::new(),
            lanes: Vec::new(),
            description,
        }))),
        Ok(Introduced::Channel(header)) => Ok(Heard::Channel(Joining {
            channel: header.channel,
            nonce: header.nonce,
            joined: Joined {
                input,
                out,
                connection: closer,
            },
        })),
        Err(error) => {
            refuse(&mut input, &mut out, &error);
            Err(error)
        }
    }
}

enum Introduced {
    Source(StreamHeader, Vec<u8>),
    Channel(ChannelHeader),
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

/// Greets, and receives the header that answers.
fn greeted(
    input: &mut SectionReader,
    out: &mut SectionWriter,
) -> Result<Introduction, ReceiveError> {
    let session = u64::from_le_bytes(random()?);
    let greeting = Greeting { session }.to_bytes();
    out.start(&greeting).map_err(SectionError::from)?;
    let bytes: [u8; STREAM_HEADER_BYTES] = input.start().map_err(SectionError::from)?;
    let introduced = Introduction::from_bytes(&bytes).map_err(SectionError::from)?;
    if introduced.session() == session {
        Ok(introduced)
    } else {
        Err(ReceiveError::Session)
    }
}

/// Makes sure that both sides mean the same memory. Returns the guest's description.
fn described(
    input: &mut SectionReader,
    header: &StreamHeader,
    shape: &Shape,
) -> Result<Vec<u8>, ReceiveError> {
    let layout = input.expect_payload(SectionKind::Layout, "Layout")?;
    shape.check(header, &layout)?;
    Ok(input.expect_payload(SectionKind::Description, "Description")?)
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N], ReceiveError> {
    let mut bytes = [0; N];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| ReceiveError::Random(error.into()))?;
    Ok(bytes)
}
