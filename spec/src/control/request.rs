// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests to the device.

use super::frame::{Body, ControlError, HEADER_BYTES, Header, MAX_PAYLOAD, finish};
use crate::wire;

/// Which pages a [`Request::PageMap`] shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PageSet {
    /// Pages that the guest has hinted, in the running or the last round.
    Hinted = 1,
    /// Pages in the balloon.
    Ballooned = 2,
    /// Pages that went back to the host because the guest reported them. The guest does not say when it reuses one, so a
    /// page in this set may be in use. The set says why a page is a hole of the memory files.
    Reported = 3,
}

/// A request: up to [`Request::Done`] from migrators, from [`Request::SetTarget`] on from people.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first frame: the client's protocol version.
    Hello {
        /// [`super::VERSION`].
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
    /// Close `epoch`: take the hints that the guest has queued, stop, and answer. After the answer no
    /// bit of the hint map is set until the next [`Request::Open`].
    Close {
        /// The epoch's number.
        epoch: u64,
    },
    /// The migration is over, in success or failure: tell the guest DONE.
    Done,
    /// The state of hinting, and its counters.
    Status,
    /// Ask the guest to put this many pages into the balloon.
    SetTarget {
        /// 4 KiB pages.
        pages: u32,
    },
    /// Ask the guest for statistics this often.
    SetStatisticsInterval {
        /// Milliseconds; 0: not at all.
        milliseconds: u64,
    },
    /// The guest's newest statistics.
    Statistics,
    /// The balloon's target, size and counters.
    BalloonStatus,
    /// Ask the guest for hints for a person, into a map of the device's own.
    HintStart,
    /// End the round for a person, and tell the guest DONE.
    HintStop,
    /// The state of hinting, and for whom the guest hints.
    HintState,
    /// A map of guest memory, see [`crate::page_map`].
    PageMap(PageSet),
}

impl Request {
    const HELLO: u16 = 1;
    const SET_HINT_MAP: u16 = 2;
    const OPEN: u16 = 3;
    const CLOSE: u16 = 4;
    const DONE: u16 = 5;
    const STATUS: u16 = 6;
    const SET_TARGET: u16 = 7;
    const SET_STATISTICS_INTERVAL: u16 = 8;
    const STATISTICS: u16 = 9;
    const BALLOON_STATUS: u16 = 10;
    const HINT_START: u16 = 11;
    const HINT_STOP: u16 = 12;
    const HINT_STATE: u16 = 13;
    const PAGE_MAP: u16 = 14;

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
            Self::SetTarget { pages } => {
                body.u32(pages);
                Self::SET_TARGET
            }
            Self::SetStatisticsInterval { milliseconds } => {
                body.u64(milliseconds);
                Self::SET_STATISTICS_INTERVAL
            }
            Self::Statistics => Self::STATISTICS,
            Self::BalloonStatus => Self::BALLOON_STATUS,
            Self::HintStart => Self::HINT_START,
            Self::HintStop => Self::HINT_STOP,
            Self::HintState => Self::HINT_STATE,
            Self::PageMap(set) => {
                body.u32(set as u32);
                Self::PAGE_MAP
            }
        };
        let length = body.length;
        finish(frame, kind, sequence, length)
    }

    /// Reads the payload of a frame whose header has been read.
    ///
    /// # Errors
    /// [`ControlError`] if it is not a valid request.
    pub fn decode(header: &Header, payload: &[u8]) -> Result<Self, ControlError> {
        let kind = header.kind;
        let length = match kind {
            Self::HELLO | Self::SET_TARGET | Self::PAGE_MAP => 4,
            Self::SET_HINT_MAP | Self::OPEN | Self::CLOSE | Self::SET_STATISTICS_INTERVAL => 8,
            Self::DONE..=Self::STATUS | Self::STATISTICS..=Self::HINT_STATE => 0,
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
            Self::STATUS => Self::Status,
            Self::SET_TARGET => Self::SetTarget {
                pages: wire::u32_at(payload, 0),
            },
            Self::SET_STATISTICS_INTERVAL => Self::SetStatisticsInterval {
                milliseconds: wire::u64_at(payload, 0),
            },
            Self::STATISTICS => Self::Statistics,
            Self::BALLOON_STATUS => Self::BalloonStatus,
            Self::HINT_START => Self::HintStart,
            Self::HINT_STOP => Self::HintStop,
            Self::HINT_STATE => Self::HintState,
            _ => Self::PageMap(match wire::u32_at(payload, 0) {
                1 => PageSet::Hinted,
                2 => PageSet::Ballooned,
                3 => PageSet::Reported,
                _ => return Err(ControlError::Value { kind }),
            }),
        })
    }
}
