// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control protocol between the migrator and the balloon device: hint epochs over a unix socket.
//!
//! Every frame is a 16-byte header and at most [`MAX_PAYLOAD`] bytes of payload, all little-endian.
//! The migrator sends requests; the device answers each with exactly one reply of the same sequence
//! number. [`Request::SetHintMap`] carries one file descriptor (SCM_RIGHTS). `control-protocol.md` has
//! the drawings and the order of things.

use crate::balloon::CommandId;
use crate::hint_map::HintPhase;
use crate::wire;

/// The first four bytes of every frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"LCTL");
/// The protocol's version, exchanged in [`Request::Hello`].
pub const VERSION: u32 = 1;
/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 16;
/// The most payload a frame may have.
pub const MAX_PAYLOAD: usize = 256;

/// A frame header: `magic u32, kind u16, zero u16, sequence u32, length u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is, see [`Request`] and [`Reply`].
    pub kind: u16,
    /// Chosen by the migrator, repeated in the reply.
    pub sequence: u32,
    /// Bytes of payload.
    pub length: u32,
}

impl Header {
    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        wire::put(&mut bytes, 0, &MAGIC.to_le_bytes());
        wire::put(&mut bytes, 4, &self.kind.to_le_bytes());
        wire::put(&mut bytes, 8, &self.sequence.to_le_bytes());
        wire::put(&mut bytes, 12, &self.length.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`ControlError`] for a wrong magic number or too long a payload.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ControlError> {
        let magic = wire::u32_at(bytes, 0);
        if magic != MAGIC {
            return Err(ControlError::Magic(magic));
        }
        let header = Self {
            kind: wire::u16_at(bytes, 4),
            sequence: wire::u32_at(bytes, 8),
            length: wire::u32_at(bytes, 12),
        };
        if header.length as usize > MAX_PAYLOAD {
            return Err(ControlError::TooLong(header.length));
        }
        Ok(header)
    }
}

/// A frame that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Not the protocol's magic number.
    Magic(u32),
    /// A payload longer than [`MAX_PAYLOAD`].
    TooLong(u32),
    /// A kind that does not exist, or not in this direction.
    Kind(u16),
    /// A payload of another length than its kind has.
    Length {
        /// The frame's kind.
        kind: u16,
        /// Its payload's length.
        length: usize,
    },
    /// A field with a value that it cannot have.
    Value {
        /// The frame's kind.
        kind: u16,
    },
}

impl core::fmt::Display for ControlError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "not a control frame: it starts with {found:#x}"),
            Self::TooLong(length) => {
                write!(f, "a payload of {length} bytes, the most is {MAX_PAYLOAD}")
            }
            Self::Kind(kind) => write!(f, "unknown frame kind {kind}"),
            Self::Length { kind, length } => {
                write!(
                    f,
                    "frame kind {kind} cannot have a payload of {length} bytes"
                )
            }
            Self::Value { kind } => write!(f, "frame kind {kind} with an impossible value"),
        }
    }
}

impl core::error::Error for ControlError {}

/// What the migrator asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// First frame: the migrator's protocol version.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Use the hint map in the attached file descriptor, `bytes` long: a memfd sealed with
    /// `F_SEAL_SHRINK`, so that no access to it can fail later.
    SetHintMap {
        /// Bytes of the file.
        bytes: u64,
    },
    /// Open `epoch`: publish a new command id. Only while none is open.
    Open {
        /// The epoch's number, from 1, rising.
        epoch: u64,
    },
    /// Close `epoch`: take what the guest has queued already, stop, and answer. After the answer no
    /// bit of the hint map is set until the next [`Request::Open`].
    Close {
        /// The epoch's number.
        epoch: u64,
    },
    /// The migration is over, one way or the other: tell the guest to take its pages back.
    Done,
    /// Where things stand.
    Status,
}

impl Request {
    const HELLO: u16 = 1;
    const SET_HINT_MAP: u16 = 2;
    const OPEN: u16 = 3;
    const CLOSE: u16 = 4;
    const DONE: u16 = 5;
    const STATUS: u16 = 6;

    /// Writes the frame into `frame` and returns its length.
    pub fn encode(self, sequence: u32, frame: &mut [u8; HEADER_BYTES + MAX_PAYLOAD]) -> usize {
        let mut body = Body::new(&mut frame[HEADER_BYTES..]);
        let kind = match self {
            Self::Hello { version } => {
                body.u32(version);
                Self::HELLO
            }
            Self::SetHintMap { bytes } => {
                body.u64(bytes);
                Self::SET_HINT_MAP
            }
            Self::Open { epoch } => {
                body.u64(epoch);
                Self::OPEN
            }
            Self::Close { epoch } => {
                body.u64(epoch);
                Self::CLOSE
            }
            Self::Done => Self::DONE,
            Self::Status => Self::STATUS,
        };
        let length = body.length;
        finish(frame, kind, sequence, length)
    }

    /// Reads the payload of a frame whose header has been read.
    ///
    /// # Errors
    /// [`ControlError`] if it is no request.
    pub fn decode(header: &Header, payload: &[u8]) -> Result<Self, ControlError> {
        let kind = header.kind;
        let length = match kind {
            Self::HELLO => 4,
            Self::SET_HINT_MAP | Self::OPEN | Self::CLOSE => 8,
            Self::DONE | Self::STATUS => 0,
            _ => return Err(ControlError::Kind(kind)),
        };
        if payload.len() != length {
            return Err(ControlError::Length {
                kind,
                length: payload.len(),
            });
        }
        Ok(match kind {
            Self::HELLO => Self::Hello {
                version: wire::u32_at(payload, 0),
            },
            Self::SET_HINT_MAP => Self::SetHintMap {
                bytes: wire::u64_at(payload, 0),
            },
            Self::OPEN => Self::Open {
                epoch: wire::u64_at(payload, 0),
            },
            Self::CLOSE => Self::Close {
                epoch: wire::u64_at(payload, 0),
            },
            Self::DONE => Self::Done,
            _ => Self::Status,
        })
    }
}

/// What the device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The device's [`VERSION`].
        version: u32,
        /// Feature bits that guest and device agreed on; 0 before the driver is up.
        features: u64,
    },
    /// To [`Request::SetHintMap`] and [`Request::Done`].
    Ok,
    /// To [`Request::Open`].
    Opened {
        /// The command id that the guest is asked for.
        command_id: CommandId,
    },
    /// To [`Request::Close`].
    Closed(EpochReport),
    /// To [`Request::Status`].
    Status(DeviceStatus),
    /// Instead of any other.
    Refused(Refusal),
}

/// What one epoch brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochReport {
    /// The epoch's number.
    pub epoch: u64,
    /// How far the guest came before the epoch was closed.
    pub phase: HintPhase,
    /// Hint buffers taken (scatter-gather entries).
    pub hints: u64,
    /// Pages newly set in the hint map.
    pub pages: u64,
    /// Buffers dropped for a wrong id, or because no round was running.
    pub stale: u64,
    /// Buffers of which nothing could be used: outside memory, no whole page, zero length.
    pub rejected: u64,
}

/// Where the device stands: the state and the totals since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Feature bits that guest and device agreed on; 0 before the driver is up.
    pub features: u64,
    /// The open epoch, 0 if none.
    pub epoch: u64,
    /// How far the guest is.
    pub phase: HintPhase,
    /// The configuration space's `free_page_hint_cmd_id`.
    pub command_id: u32,
    /// The guest's page poison value. Not 0: hints are refused, see `free-page-hinting.md`.
    pub poison: u32,
    /// Epochs opened.
    pub epochs: u64,
    /// Hint buffers taken.
    pub hints: u64,
    /// Pages newly set, summed over epochs.
    pub pages: u64,
    /// Buffers dropped as stale.
    pub stale: u64,
    /// Buffers outside guest memory (counted once, also when a part was inside and used).
    pub out_of_range: u64,
    /// Buffers without one whole page.
    pub partial: u64,
    /// Buffers of length 0.
    pub zero_length: u64,
    /// Command buffers that are not 4 bytes, or hold an id nobody asked for.
    pub bad_commands: u64,
    /// Descriptor chains that could not be walked to their end.
    pub broken_chains: u64,
}

/// Why the device refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The first frame was no [`Request::Hello`], or of another version.
    Version = 1,
    /// The guest's driver has not negotiated free page hinting (or is not up yet).
    NotNegotiated = 2,
    /// No hint map has been set, or it could not be used.
    HintMap = 3,
    /// An epoch is open already.
    EpochOpen = 4,
    /// The epoch to be closed is not the open one.
    NoSuchEpoch = 5,
    /// The guest fills its free pages with a non-zero poison value: hints cannot be used.
    Poison = 6,
    /// The frame could not be read.
    BadFrame = 7,
    /// The rings do not run (device suspended, or being reset).
    Stopped = 8,
    /// The front end takes no configuration change messages: the guest cannot be asked.
    Unreachable = 9,
}

impl Refusal {
    fn from_raw(raw: u32) -> Option<Self> {
        [
            Self::Version,
            Self::NotNegotiated,
            Self::HintMap,
            Self::EpochOpen,
            Self::NoSuchEpoch,
            Self::Poison,
            Self::BadFrame,
            Self::Stopped,
            Self::Unreachable,
        ]
        .into_iter()
        .find(|refusal| *refusal as u32 == raw)
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Version => "the device speaks another version of the control protocol",
            Self::NotNegotiated => "the guest's driver has not negotiated free page hinting",
            Self::HintMap => "the hint map cannot be used",
            Self::EpochOpen => "an epoch is open already",
            Self::NoSuchEpoch => "that epoch is not open",
            Self::Poison => "the guest poisons its free pages with a value other than zero",
            Self::BadFrame => "the device could not read the request",
            Self::Stopped => "the device's rings do not run",
            Self::Unreachable => "the guest cannot be told that its configuration has changed",
        })
    }
}

impl core::error::Error for Refusal {}

impl Reply {
    const HELLO: u16 = 0x81;
    const OK: u16 = 0x82;
    const OPENED: u16 = 0x83;
    const CLOSED: u16 = 0x84;
    const STATUS: u16 = 0x86;
    const REFUSED: u16 = 0xff;

    /// Writes the frame into `frame` and returns its length.
    pub fn encode(self, sequence: u32, frame: &mut [u8; HEADER_BYTES + MAX_PAYLOAD]) -> usize {
        let mut body = Body::new(&mut frame[HEADER_BYTES..]);
        let kind = match self {
            Self::Hello { version, features } => {
                body.u32(version);
                body.u64(features);
                Self::HELLO
            }
            Self::Ok => Self::OK,
            Self::Opened { command_id } => {
                body.u32(command_id.get());
                Self::OPENED
            }
            Self::Closed(report) => {
                for field in [
                    report.epoch,
                    report.phase as u64,
                    report.hints,
                    report.pages,
                    report.stale,
                    report.rejected,
                ] {
                    body.u64(field);
                }
                Self::CLOSED
            }
            Self::Status(status) => {
                for field in status.to_words() {
                    body.u64(field);
                }
                Self::STATUS
            }
            Self::Refused(refusal) => {
                body.u32(refusal as u32);
                Self::REFUSED
            }
        };
        let length = body.length;
        finish(frame, kind, sequence, length)
    }

    /// Reads the payload of a frame whose header has been read.
    ///
    /// # Errors
    /// [`ControlError`] if it is no reply.
    pub fn decode(header: &Header, payload: &[u8]) -> Result<Self, ControlError> {
        let kind = header.kind;
        let length = match kind {
            Self::HELLO => 12,
            Self::OK => 0,
            Self::OPENED | Self::REFUSED => 4,
            Self::CLOSED => 48,
            Self::STATUS => DeviceStatus::WORDS * 8,
            _ => return Err(ControlError::Kind(kind)),
        };
        if payload.len() != length {
            return Err(ControlError::Length {
                kind,
                length: payload.len(),
            });
        }
        let value = ControlError::Value { kind };
        let word = |index: usize| wire::u64_at(payload, index * 8);
        Ok(match kind {
            Self::HELLO => Self::Hello {
                version: wire::u32_at(payload, 0),
                features: wire::u64_at(payload, 4),
            },
            Self::OK => Self::Ok,
            Self::OPENED => Self::Opened {
                command_id: CommandId::new(wire::u32_at(payload, 0)).ok_or(value)?,
            },
            Self::CLOSED => Self::Closed(EpochReport {
                epoch: word(0),
                phase: HintPhase::from_raw(word(1)).ok_or(value)?,
                hints: word(2),
                pages: word(3),
                stale: word(4),
                rejected: word(5),
            }),
            Self::STATUS => {
                let mut words = [0; DeviceStatus::WORDS];
                for (index, slot) in words.iter_mut().enumerate() {
                    *slot = word(index);
                }
                Self::Status(DeviceStatus::from_words(words).ok_or(value)?)
            }
            _ => Self::Refused(Refusal::from_raw(wire::u32_at(payload, 0)).ok_or(value)?),
        })
    }
}

impl DeviceStatus {
    const WORDS: usize = 14;

    fn to_words(self) -> [u64; Self::WORDS] {
        [
            self.features,
            self.epoch,
            self.phase as u64,
            u64::from(self.command_id),
            u64::from(self.poison),
            self.epochs,
            self.hints,
            self.pages,
            self.stale,
            self.out_of_range,
            self.partial,
            self.zero_length,
            self.bad_commands,
            self.broken_chains,
        ]
    }

    fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        Some(Self {
            features: words[0],
            epoch: words[1],
            phase: HintPhase::from_raw(words[2])?,
            command_id: u32::try_from(words[3]).ok()?,
            poison: u32::try_from(words[4]).ok()?,
            epochs: words[5],
            hints: words[6],
            pages: words[7],
            stale: words[8],
            out_of_range: words[9],
            partial: words[10],
            zero_length: words[11],
            bad_commands: words[12],
            broken_chains: words[13],
        })
    }
}

/// Appends fields to a payload.
struct Body<'a> {
    bytes: &'a mut [u8],
    length: usize,
}

impl<'a> Body<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, length: 0 }
    }

    fn u32(&mut self, value: u32) {
        wire::put(self.bytes, self.length, &value.to_le_bytes());
        self.length += 4;
    }

    fn u64(&mut self, value: u64) {
        wire::put(self.bytes, self.length, &value.to_le_bytes());
        self.length += 8;
    }
}

fn finish(
    frame: &mut [u8; HEADER_BYTES + MAX_PAYLOAD],
    kind: u16,
    sequence: u32,
    length: usize,
) -> usize {
    let header = Header {
        kind,
        sequence,
        length: length as u32,
    };
    frame[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    HEADER_BYTES + length
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header_and_payload(frame: &[u8]) -> (Header, &[u8]) {
        let header = Header::from_bytes(frame[..HEADER_BYTES].try_into().unwrap()).unwrap();
        (header, &frame[HEADER_BYTES..])
    }

    #[test]
    fn every_request_survives_a_round_trip() {
        let requests = [
            Request::Hello { version: VERSION },
            Request::SetHintMap { bytes: 1 << 40 },
            Request::Open { epoch: 1 },
            Request::Close { epoch: u64::MAX },
            Request::Done,
            Request::Status,
        ];
        for request in requests {
            let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
            let length = request.encode(9, &mut frame);
            let (header, payload) = header_and_payload(&frame[..length]);
            assert_eq!(header.sequence, 9);
            assert_eq!(Request::decode(&header, payload), Ok(request));
        }
    }

    #[test]
    fn every_reply_survives_a_round_trip() {
        let status = DeviceStatus {
            features: 1 << 32,
            phase: HintPhase::Running,
            command_id: u32::MAX,
            broken_chains: 5,
            ..Default::default()
        };
        let report = EpochReport {
            epoch: 3,
            phase: HintPhase::Finished,
            pages: 8,
            ..Default::default()
        };
        let replies = [
            Reply::Hello {
                version: VERSION,
                features: 0x1_0000_0008,
            },
            Reply::Ok,
            Reply::Opened {
                command_id: CommandId::FIRST,
            },
            Reply::Closed(report),
            Reply::Status(status),
            Reply::Refused(Refusal::Stopped),
        ];
        for reply in replies {
            let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
            let length = reply.encode(1, &mut frame);
            let (header, payload) = header_and_payload(&frame[..length]);
            assert_eq!(Reply::decode(&header, payload), Ok(reply));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 16..80), kind: u16) {
            let _ = Header::from_bytes(bytes[..16].try_into().unwrap());
            let header = Header { kind: kind & 0xff, sequence: 0, length: 0 };
            let _ = Request::decode(&header, &bytes[16..]);
            let _ = Reply::decode(&header, &bytes[16..]);
        }
    }
}
