// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of hinting, for people: how far the guest is, and for whom it hints.
//!
//! ```text
//!        start            the guest answers           the guest has no more
//! idle ─────────► requested ─────────────► running ─────────────────────────► finished
//!  ▲                  │                       │                                   │
//!  │ guest resets     └── stop, or a migrator comes, or the round's time is over ─┤
//!  │                                                                              ▼
//!  └──────────────────────────── (the next start leaves it) ─────────────────── done
//! ```
//!
//! The states are those of [`HintPhase`]; idle is [`HintPhase::Closed`].

use super::frame::{Body, ControlError};
use crate::hint_map::HintPhase;
use crate::wire;

/// For whom the guest hints, or hinted last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum HintHolder {
    /// Nobody.
    #[default]
    Nobody = 0,
    /// A migrator: it has set a hint map and is connected.
    Migrator = 1,
    /// A person, by [`super::Request::HintStart`].
    Person = 2,
}

/// How the last round for a person ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum RoundEnd {
    /// It has not ended, or there was none.
    #[default]
    None = 0,
    /// By [`super::Request::HintStop`].
    Stopped = 1,
    /// By a migrator, which takes precedence.
    Migrator = 2,
    /// The guest was reset, or its VMM hung up.
    Reset = 3,
    /// By the device, because it lasted longer than the device's limit.
    Expired = 4,
}

/// The state of hinting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintState {
    /// How far the guest is.
    pub phase: HintPhase,
    /// For whom it hints.
    pub holder: HintHolder,
    /// How the last round for a person ended.
    pub ended: RoundEnd,
    /// The configuration space's `free_page_hint_cmd_id`.
    pub command_id: u32,
    /// Hint buffers taken in the open round, or in the last round for a person.
    pub hints: u64,
    /// Pages newly set in the map in that round.
    pub pages: u64,
    /// Those of them that the guest's agent reported.
    pub agent_pages: u64,
    /// Buffers of that round dropped for a wrong id, or because the guest was not in a round.
    pub stale: u64,
    /// Buffers of that round without a usable page.
    pub rejected: u64,
}

impl HintState {
    pub(super) const BYTES: usize = 4 * 4 + 5 * 8;

    pub(super) fn write(&self, body: &mut Body<'_>) {
        body.u32(self.phase as u32);
        body.u32(self.holder as u32);
        body.u32(self.ended as u32);
        body.u32(self.command_id);
        for field in [
            self.hints,
            self.pages,
            self.agent_pages,
            self.stale,
            self.rejected,
        ] {
            body.u64(field);
        }
    }

    /// Reads [`HintState::BYTES`] bytes.
    pub(super) fn read(kind: u16, payload: &[u8]) -> Result<Self, ControlError> {
        let value = ControlError::Value { kind };
        let half = |index: usize| wire::u32_at(payload, index * 4);
        let word = |index: usize| wire::u64_at(payload, 16 + index * 8);
        Ok(Self {
            phase: HintPhase::from_raw(half(0).into()).ok_or(value)?,
            holder: match half(1) {
                0 => HintHolder::Nobody,
                1 => HintHolder::Migrator,
                2 => HintHolder::Person,
                _ => return Err(value),
            },
            ended: match half(2) {
                0 => RoundEnd::None,
                1 => RoundEnd::Stopped,
                2 => RoundEnd::Migrator,
                3 => RoundEnd::Reset,
                4 => RoundEnd::Expired,
                _ => return Err(value),
            },
            command_id: half(3),
            hints: word(0),
            pages: word(1),
            agent_pages: word(2),
            stale: word(3),
            rejected: word(4),
        })
    }
}
