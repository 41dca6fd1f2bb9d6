// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests of the device and the answers of the agent.

use super::frame::{FRAME_HEADER_BYTES, Frame, seal_header};
use super::map::FreeMap;
use crate::wire;

/// A request of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Asks who is there. The agent answers [`Answer::Hello`].
    Hello,
    /// Asks for the pages that are free now, in the hint epoch `epoch`. Ends the answer to an earlier request.
    Map {
        /// The epoch that every frame of the answer carries.
        epoch: u64,
        /// A migration begins: the agent may first drop caches or compact memory, if its user allows that.
        first: bool,
    },
    /// Nothing more is wanted.
    Stop,
}

impl Ask {
    const HELLO: u16 = 1;
    const MAP: u16 = 2;
    const STOP: u16 = 3;

    /// Bytes of a request's frame.
    pub const FRAME_BYTES: usize = FRAME_HEADER_BYTES + 4;

    /// The request as a frame.
    pub fn to_frame(self) -> [u8; Self::FRAME_BYTES] {
        let (kind, epoch, word) = match self {
            Self::Hello => (Self::HELLO, 0, 0),
            Self::Map { epoch, first } => (Self::MAP, epoch, u32::from(first)),
            Self::Stop => (Self::STOP, 0, 0),
        };
        let mut bytes = [0; Self::FRAME_BYTES];
        let (header, payload) = bytes.split_at_mut(FRAME_HEADER_BYTES);
        payload.copy_from_slice(&word.to_le_bytes());
        seal_header(header, kind, epoch, payload);
        bytes
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`MessageError`] for a frame that is not a request.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let error = MessageError { kind: frame.kind };
        let payload: [u8; 4] = frame.payload.try_into().map_err(|_| error)?;
        match (frame.kind, frame.epoch, u32::from_le_bytes(payload)) {
            (Self::HELLO, 0, 0) => Ok(Self::Hello),
            (Self::MAP, epoch @ 1.., first @ 0..=1) => Ok(Self::Map {
                epoch,
                first: first == 1,
            }),
            (Self::STOP, 0, 0) => Ok(Self::Stop),
            _ => Err(error),
        }
    }
}

/// An answer of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The answer to [`Ask::Hello`]; also sent unasked when the agent starts.
    Hello(Settings),
    /// Free pages of a part of memory, read after the request for `epoch`.
    Map {
        /// The epoch.
        epoch: u64,
        /// The pages.
        map: FreeMap<'a>,
    },
    /// All of memory has been read.
    End {
        /// The epoch.
        epoch: u64,
        /// What the map cost.
        totals: Totals,
    },
    /// There is no map for `epoch`, because the kernel refused access to its page flags.
    Failed {
        /// The epoch.
        epoch: u64,
        /// The kernel's error number.
        errno: u32,
    },
}

impl<'a> Answer<'a> {
    /// The kind of [`Answer::Hello`].
    pub const HELLO: u16 = 0x81;
    /// The kind of [`Answer::Map`].
    pub const MAP: u16 = 0x82;
    /// The kind of [`Answer::End`].
    pub const END: u16 = 0x83;
    /// The kind of [`Answer::Failed`].
    pub const FAILED: u16 = 0x84;

    /// Reads a frame and checks all of it.
    ///
    /// # Errors
    /// [`MessageError`] for a frame that is not an answer.
    pub fn read(frame: &Frame<'a>) -> Result<Self, MessageError> {
        let error = MessageError { kind: frame.kind };
        let (epoch, payload) = (frame.epoch, frame.payload);
        match (frame.kind, payload.len()) {
            (Self::HELLO, Settings::BYTES) => Ok(Self::Hello(Settings::from_bytes(payload))),
            (Self::MAP, _) => FreeMap::open(payload)
                .map(|map| Self::Map { epoch, map })
                .map_err(|_| error),
            (Self::END, Totals::BYTES) => Ok(Self::End {
                epoch,
                totals: Totals::from_bytes(payload),
            }),
            (Self::FAILED, 4) => Ok(Self::Failed {
                epoch,
                errno: wire::u32_at(payload, 0),
            }),
            _ => Err(error),
        }
    }
}

/// What the agent says about its kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The agent's [`super::VERSION`].
    pub version: u32,
    /// Bytes of the kernel's pages.
    pub page_size: u32,
    /// Pages from page frame 0 to the end of memory.
    pub pages: u64,
    /// Flags: [`Settings::POISON`] and the others.
    pub flags: u32,
}

impl Settings {
    /// Bytes of the payload: `version u32, page size u32, pages u64, flags u32, zero u32`.
    pub const BYTES: usize = 24;
    /// Free pages hold a pattern that the kernel checks when it allocates them (`page_poison=1`). They must not read as
    /// zero, so this guest's maps must not be used.
    pub const POISON: u32 = 1 << 0;
    /// The kernel zeroes pages when they are freed, and relies on free pages being zero (`init_on_free=1`).
    pub const INIT_ON_FREE: u32 = 1 << 1;
    /// The kernel zeroes pages when they are allocated, including those that its balloon driver hints.
    pub const INIT_ON_ALLOC: u32 = 1 << 2;
    /// The agent could not read one of these settings. Treat this like [`Settings::POISON`].
    pub const UNKNOWN: u32 = 1 << 3;
    /// The user lets the agent drop the page cache when a migration begins.
    pub const DROPS_CACHES: u32 = 1 << 4;
    /// The user lets the agent compact memory when a migration begins.
    pub const COMPACTS: u32 = 1 << 5;

    /// Whether a free page of this guest may read as zero after a migration.
    pub fn free_pages_may_be_zero(&self) -> bool {
        self.flags & (Self::POISON | Self::UNKNOWN) == 0
    }

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        wire::put(&mut bytes, 0, &self.version.to_le_bytes());
        wire::put(&mut bytes, 4, &self.page_size.to_le_bytes());
        wire::put(&mut bytes, 8, &self.pages.to_le_bytes());
        wire::put(&mut bytes, 16, &self.flags.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            version: wire::u32_at(bytes, 0),
            page_size: wire::u32_at(bytes, 4),
            pages: wire::u64_at(bytes, 8),
            flags: wire::u32_at(bytes, 16),
        }
    }
}

/// What one map of all memory cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages whose flags were read.
    pub read: u64,
    /// Pages that were free.
    pub free: u64,
    /// [`Answer::Map`] frames.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: u64,
    /// Microseconds from the request to the end.
    pub elapsed_us: u64,
    /// Microseconds of processor time, including the kernel's.
    pub cpu_us: u64,
}

impl Totals {
    /// Bytes of the payload: the fields in order, 64 bits each.
    pub const BYTES: usize = 48;

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let fields = [
            self.read,
            self.free,
            self.frames,
            self.bytes,
            self.elapsed_us,
            self.cpu_us,
        ];
        let mut bytes = [0; Self::BYTES];
        for (at, field) in bytes.chunks_exact_mut(8).zip(fields) {
            at.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let field = |index: usize| wire::u64_at(bytes, index * 8);
        Self {
            read: field(0),
            free: field(1),
            frames: field(2),
            bytes: field(3),
            elapsed_us: field(4),
            cpu_us: field(5),
        }
    }
}

/// A frame that is not a valid message in this direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageError {
    /// The frame's kind.
    pub kind: u16,
}

impl core::fmt::Display for MessageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "an invalid agent frame of kind {:#x}", self.kind)
    }
}

impl core::error::Error for MessageError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Deframer;

    #[test]
    fn every_question_survives_the_way() {
        for ask in [
            Ask::Hello,
            Ask::Stop,
            Ask::Map {
                epoch: 1,
                first: true,
            },
            Ask::Map {
                epoch: u64::MAX,
                first: false,
            },
        ] {
            let mut deframer = Deframer::default();
            let bytes = ask.to_frame();
            deframer.space()[..bytes.len()].copy_from_slice(&bytes);
            deframer.filled(bytes.len());
            let frame = deframer.next_frame().unwrap();
            assert_eq!(Ask::read(&frame), Ok(ask));
        }
    }

    #[test]
    fn a_question_without_an_epoch_or_with_another_payload_is_none() {
        let read = |kind, epoch, payload: &[u8]| {
            Ask::read(&Frame {
                kind,
                epoch,
                payload,
            })
        };
        assert!(read(2, 0, &[0; 4]).is_err());
        assert!(read(2, 1, &[2, 0, 0, 0]).is_err());
        assert!(read(2, 1, &[0; 3]).is_err());
        assert!(read(1, 1, &[0; 4]).is_err());
        assert!(read(4, 1, &[0; 4]).is_err());
        assert!(read(Answer::MAP, 1, &[0; 4]).is_err());
    }

    #[test]
    fn answers_survive_the_way_and_are_of_one_length_only() {
        let settings = Settings {
            version: 1,
            page_size: 4096,
            pages: 1 << 33,
            flags: Settings::INIT_ON_FREE,
        };
        let totals = Totals {
            read: 1,
            free: 2,
            frames: 3,
            bytes: 4,
            elapsed_us: 5,
            cpu_us: u64::MAX,
        };
        let hello = settings.to_bytes();
        let end = totals.to_bytes();
        let cases: [(u16, &[u8], Answer<'_>); 3] = [
            (Answer::HELLO, &hello, Answer::Hello(settings)),
            (Answer::END, &end, Answer::End { epoch: 9, totals }),
            (
                Answer::FAILED,
                &[13, 0, 0, 0],
                Answer::Failed {
                    epoch: 9,
                    errno: 13,
                },
            ),
        ];
        for (kind, payload, answer) in cases {
            let read = |payload| {
                Answer::read(&Frame {
                    kind,
                    epoch: 9,
                    payload,
                })
            };
            assert_eq!(read(payload), Ok(answer));
            assert!(read(&payload[1..]).is_err());
        }
    }

    #[test]
    fn a_guest_that_checks_its_free_pages_or_may_do_so_is_known_by_its_flags() {
        let may = |flags| {
            Settings {
                flags,
                ..Settings::default()
            }
            .free_pages_may_be_zero()
        };
        assert!(may(Settings::INIT_ON_FREE | Settings::INIT_ON_ALLOC));
        assert!(!may(Settings::POISON));
        assert!(!may(Settings::UNKNOWN | Settings::INIT_ON_FREE));
    }
}
