// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The replies of the device.

use super::balloon_status::BalloonStatus;
use super::frame::{Body, ControlError, HEADER_BYTES, Header, MAX_PAYLOAD, finish};
use super::hint_state::HintState;
use super::refusal::Refusal;
use super::report::{DeviceStatus, EpochReport};
use super::statistics::Statistics;
use crate::balloon::CommandId;
use crate::hint_map::HintPhase;
use crate::wire;

/// A reply of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "nothing is allocated in this crate, and replies come one at a time"
)]
pub enum Reply {
    /// To [`super::Request::Hello`].
    Hello {
        /// The device's [`super::VERSION`].
        version: u32,
        /// Feature bits that guest and device agreed on; 0 before the driver is up.
        features: u64,
    },
    /// To [`super::Request::SetHintMap`], [`super::Request::Done`], [`super::Request::SetTarget`] and
    /// [`super::Request::SetStatisticsInterval`].
    Ok,
    /// To [`super::Request::Open`].
    Opened {
        /// The command id under which the guest is asked.
        command_id: CommandId,
    },
    /// To [`super::Request::Close`].
    Closed(EpochReport),
    /// To [`super::Request::Status`].
    Status(DeviceStatus),
    /// To [`super::Request::Statistics`].
    Statistics(Statistics),
    /// To [`super::Request::BalloonStatus`].
    BalloonStatus(BalloonStatus),
    /// To [`super::Request::HintStart`], [`super::Request::HintStop`] and [`super::Request::HintState`].
    HintState(HintState),
    /// To [`super::Request::PageMap`]. The map's file descriptor comes with it.
    PageMap {
        /// Bytes of the file.
        bytes: u64,
    },
    /// Refuses any request.
    Refused(Refusal),
}

impl Reply {
    const HELLO: u16 = 0x81;
    const OK: u16 = 0x82;
    const OPENED: u16 = 0x83;
    const CLOSED: u16 = 0x84;
    const STATUS: u16 = 0x86;
    const STATISTICS: u16 = 0x89;
    const BALLOON_STATUS: u16 = 0x8a;
    const HINT_STATE: u16 = 0x8d;
    const PAGE_MAP: u16 = 0x8e;
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
                    report.agent_pages,
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
            Self::Statistics(statistics) => {
                statistics.write(&mut body);
                Self::STATISTICS
            }
            Self::BalloonStatus(status) => {
                for field in status.to_words() {
                    body.u64(field);
                }
                Self::BALLOON_STATUS
            }
            Self::HintState(state) => {
                state.write(&mut body);
                Self::HINT_STATE
            }
            Self::PageMap { bytes } => {
                body.u64(bytes);
                Self::PAGE_MAP
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
    /// [`ControlError`] if it is not a valid reply.
    pub fn decode(header: &Header, payload: &[u8]) -> Result<Self, ControlError> {
        let kind = header.kind;
        let length = match kind {
            Self::HELLO => 12,
            Self::OK => 0,
            Self::OPENED | Self::REFUSED => 4,
            Self::CLOSED => 56,
            Self::STATUS => DeviceStatus::WORDS * 8,
            Self::STATISTICS => return Statistics::read(kind, payload).map(Self::Statistics),
            Self::BALLOON_STATUS => BalloonStatus::WORDS * 8,
            Self::HINT_STATE => HintState::BYTES,
            Self::PAGE_MAP => 8,
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
                agent_pages: word(4),
                stale: word(5),
                rejected: word(6),
            }),
            Self::STATUS => Self::Status(DeviceStatus::from_words(words(payload)).ok_or(value)?),
            Self::BALLOON_STATUS => {
                Self::BalloonStatus(BalloonStatus::from_words(words(payload)).ok_or(value)?)
            }
            Self::HINT_STATE => Self::HintState(HintState::read(kind, payload)?),
            Self::PAGE_MAP => Self::PageMap { bytes: word(0) },
            _ => Self::Refused(Refusal::from_raw(wire::u32_at(payload, 0)).ok_or(value)?),
        })
    }
}

/// The first `N` words of `payload`, whose length has been checked.
fn words<const N: usize>(payload: &[u8]) -> [u64; N] {
    core::array::from_fn(|index| wire::u64_at(payload, index * 8))
}
