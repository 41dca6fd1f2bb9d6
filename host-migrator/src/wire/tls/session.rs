// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What both directions of a connection share: rustls, which turns bytes into bytes.

use std::fmt;

use parking_lot::Mutex;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{Error, HandshakeKind};

use super::buffer::{Buffer, RECORD, RECORD_OVERHEAD};

/// The two ends of a handshake.
pub(super) enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What happened to the bytes that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Something was done, and there may be more to do.
    Again,
    /// What waits in the outgoing buffer is to be sent now.
    Send,
    /// More bytes of the peer are needed for the handshake.
    Handshaking,
    /// The handshake is complete, and all whole records are done.
    Open,
    /// The peer has said that it sends no more.
    Closed,
}

impl Side {
    /// Does the next thing with `incoming`. Returns how many of its bytes are done. `take` gets what was decrypted.
    pub(super) fn step(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Buffer,
        take: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<Step, Error>) {
        match self {
            Self::Client(side) => step(side.process_tls_records(incoming), outgoing, take),
            Self::Server(side) => step(side.process_tls_records(incoming), outgoing, take),
        }
    }

    /// After an error: the alert that tells the peer, if there is one.
    pub(super) fn alert(&mut self, incoming: &mut [u8], outgoing: &mut Buffer) {
        // Never an empty buffer where a part of a handshake message waits: rustls would look for it there.
        let _ = self.step(incoming, outgoing, &mut |_| ());
    }

    /// How the handshake went, once it is complete.
    pub(super) fn handshake_kind(&self) -> Option<HandshakeKind> {
        match self {
            Self::Client(side) => side.handshake_kind(),
            Self::Server(side) => side.handshake_kind(),
        }
    }

    /// Whether the peer has shown a certificate: in this handshake, or in the one whose session it resumes.
    pub(super) fn knows_peer(&self) -> bool {
        match self {
            Self::Client(side) => side.peer_certificates().is_some(),
            Self::Server(side) => side.peer_certificates().is_some(),
        }
    }

    /// Has `job` done with what may be written once the handshake is complete.
    fn write(&mut self, job: Job<'_>, outgoing: &mut Buffer) -> Result<(), Error> {
        loop {
            let written = match self {
                Self::Client(side) => write(side.process_tls_records(&mut []), job, outgoing)?,
                Self::Server(side) => write(side.process_tls_records(&mut []), job, outgoing)?,
            };
            if written {
                return Ok(());
            }
        }
    }
}

/// What is to be written.
#[derive(Clone, Copy)]
enum Job<'a> {
    Encrypt(&'a [u8]),
    Close,
}

/// A TLS session whose handshake is complete.
pub(super) struct Session(Mutex<State>);

struct State {
    side: Side,
    /// Records that were made while reading, such as alerts. They are sent before anything else, and at the latest with the
    /// close.
    owed: Buffer,
    /// Why nothing can be read or written any more.
    failure: Option<Error>,
}

impl Session {
    pub(super) fn new(side: Side) -> Self {
        Self(Mutex::new(State {
            side,
            owed: Buffer::default(),
            failure: None,
        }))
    }

    /// Decrypts the next record of `incoming`. Returns how many of its bytes are done.
    pub(super) fn open(
        &self,
        incoming: &mut [u8],
        take: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<Step, Error>) {
        let mut state = self.0.lock();
        let State {
            side,
            owed,
            failure,
        } = &mut *state;
        if let Some(failure) = failure {
            return (0, Err(failure.clone()));
        }
        let (done, step) = side.step(incoming, owed, take);
        let rest = &mut incoming[done..];
        let step = match step {
            // rustls keeps the place of the pieces in this buffer, and a writer does not have it.
            Ok(Step::Open) if starts_with_record(rest) => {
                let text = "a handshake message came in pieces after the handshake";
                Err(Error::General(text.into()))
            }
            step => step,
        };
        if let Err(error) = &step {
            side.alert(rest, owed);
            *failure = Some(error.clone());
        }
        (done, step)
    }

    /// Encrypts `plain` into `out`, after what is owed. Returns how many of the bytes there are its own records.
    pub(super) fn seal(&self, plain: &[u8], out: &mut Buffer) -> Result<usize, Error> {
        let mut state = self.0.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.pay(out);
        state.side.write(Job::Encrypt(plain), out)?;
        Ok(sealed_length(plain.len()))
    }

    /// Says in `out` that no more is sent.
    pub(super) fn close(&self, out: &mut Buffer) {
        let mut state = self.0.lock();
        state.pay(out);
        if state.failure.is_none() {
            // An error: there is nobody to be told.
            let _ = state.side.write(Job::Close, out);
        }
    }
}

impl State {
    fn pay(&mut self, out: &mut Buffer) {
        out.extend(self.owed.waiting());
        self.owed.clear();
    }
}

impl fmt::Debug for Session {
    /// Shows no secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    outgoing: &mut Buffer,
    take: &mut dyn FnMut(&[u8]),
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                take(record.payload);
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            encode(outgoing, |room| data.encode(room))?;
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Send)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Handshaking),
        ConnectionState::WriteTraffic(_) => Ok(Step::Open),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        // Early data, which this side does not accept.
        _ => Err(Error::General("unexpected early data".into())),
    });
    (discard, step)
}

/// Whether `job` was done. If not, something else had to be done first.
fn write<D>(
    status: UnbufferedStatus<'_, '_, D>,
    job: Job<'_>,
    out: &mut Buffer,
) -> Result<bool, Error> {
    match status.state? {
        ConnectionState::WriteTraffic(mut traffic) => {
            let length = match job {
                Job::Encrypt(plain) => sealed_length(plain.len()),
                Job::Close => RECORD_OVERHEAD,
            };
            let mut room = length;
            loop {
                let sealed = match job {
                    Job::Encrypt(plain) => traffic.encrypt(plain, out.room(room)),
                    Job::Close => traffic.queue_close_notify(out.room(room)),
                };
                match sealed {
                    Ok(count) => {
                        out.filled(count);
                        return Ok(true);
                    }
                    // New keys come first.
                    Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                        room = size.required_size;
                    }
                    Err(error) => return Err(Error::General(error.to_string())),
                }
            }
        }
        ConnectionState::EncodeTlsData(mut data) => {
            encode(out, |room| data.encode(room))?;
            Ok(false)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(false)
        }
        ConnectionState::PeerClosed => Ok(false),
        _ => Err(Error::General("the connection is closed".into())),
    }
}

/// Appends what `encode` writes into a room that is large enough.
fn encode(
    out: &mut Buffer,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), Error> {
    let mut room = RECORD_OVERHEAD;
    loop {
        match encode(out.room(room)) {
            Ok(count) => {
                out.filled(count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}

/// The bytes of the records that carry `plain` bytes. TLS 1.3 records of this side are not padded.
pub(super) fn sealed_length(plain: usize) -> usize {
    plain + plain.div_ceil(RECORD) * RECORD_OVERHEAD
}

/// Whether a whole record is at the beginning of `bytes`.
pub(super) fn starts_with_record(bytes: &[u8]) -> bool {
    match bytes {
        [_, _, _, high, low, rest @ ..] => {
            rest.len() >= usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}
