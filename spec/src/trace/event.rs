// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The events of a trace, and their encoding in four words.

use core::fmt;

use super::SLOT_WORDS;
pub use super::payload::{Brought, Hinted, Log, Outcome, PageBits, Writer};
use super::payload::{Fields, Payload};
use crate::PageRange;

/// Who recorded an event: the part and its host.
///
/// The parts of one host (a machine, its migrator, its balloon device) share a number, so that a checker
/// knows whose hints they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Actor {
    /// Which part.
    pub role: Role,
    /// Which host.
    pub host: u16,
}

/// The parts that record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Role {
    /// The balloon device.
    Device = 1,
    /// The migrator, on the source's side.
    Migrator = 2,
    /// The machine: the VMM, on either side.
    Machine = 3,
}

impl Role {
    const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Device,
            2 => Self::Migrator,
            3 => Self::Machine,
            _ => return None,
        })
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Device => "device",
            Role::Migrator => "migrator",
            Role::Machine => "machine",
        };
        write!(f, "{role} {}", self.host)
    }
}

/// Defines [`Event`], and its conversion to and from a number and fields.
macro_rules! events {
    ($( $(#[$doc:meta])* $number:literal $text:literal $name:ident $(($field:ident: $payload:ty))?, )*) => {
        /// An event. *Before* and *after* say on which side of its effect it is recorded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Event {
            $( $(#[$doc])* $name $(($payload))?, )*
        }

        impl Event {
            /// Its name.
            pub const fn name(&self) -> &'static str {
                match self {
                    $( Self::$name { .. } => $text, )*
                }
            }

            fn put(self) -> (u8, Fields) {
                match self {
                    $( Self::$name $(($field))? => ($number, events!(@put $($field)?)), )*
                }
            }

            fn take(number: u8, fields: Fields) -> Option<Self> {
                Some(match number {
                    $( $number => Self::$name $((<$payload>::take(fields)?))?, )*
                    _ => return None,
                })
            }
        }

        impl fmt::Display for Event {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())?;
                match self {
                    $( Self::$name $(($field))? => events!(@show f $($field)?), )*
                }
            }
        }

        /// The number of every kind of event.
        #[cfg(test)]
        pub(crate) const NUMBERS: &[u8] = &[$( $number ),*];
    };
    (@put) => { Fields::default() };
    (@put $field:ident) => { $field.put() };
    (@show $f:ident) => { Ok(()) };
    (@show $f:ident $field:ident) => { $field.show($f) };
}

events! {
    /// Migrator: a migration begins, with this many dirty logs. Earlier migrations no longer count.
    1 "migration begins, logs:" Begin(logs: u64),
    /// Migrator: these pages are guest memory, and to be sent.
    2 "memory" Memory(pages: PageRange),
    /// Machine: KVM's log was cleared for these pages, so that the next write to each is logged. After.
    3 "armed" Armed(pages: PageRange),
    /// Migrator: the log runs, and every page is armed in it. After.
    4 "log started:" LogStarted(log: Log),
    /// Migrator: asks which pages are holes. Before.
    5 "asks for holes" HolesAsked,
    /// Migrator: these pages are holes, so they need not be sent.
    6 "hole" Hole(pages: PageRange),
    /// Migrator: opens the epoch. Before it asks the device.
    7 "opens epoch" Open(epoch: u64),
    /// Device: publishes a command id for the epoch. Before.
    8 "publishes epoch" Published(epoch: u64),
    /// Device: takes a hint of the guest. Before the pages are in the shared map.
    9 "hint" Hint(hint: Hinted),
    /// Device: takes no more hints of the epoch. After the last.
    10 "has closed epoch" DeviceClosed(epoch: u64),
    /// Migrator: the device has confirmed that the epoch is closed. After.
    11 "epoch is closed:" Closed(epoch: u64),
    /// Migrator: has cleared the hints of closed epochs in the map. After.
    12 "hints are forgotten" Forgotten,
    /// Migrator: the source of hints has failed, and its map is no longer read. After the map was dropped.
    13 "hints are lost" HintsLost,
    /// Migrator: begins to harvest all logs; true for the last time. Before the first is read.
    14 "harvest begins, the last" HarvestBegin(last: bool),
    /// Migrator: a harvest has brought these pages. After they are in the migration bitmap or, for an early harvest, among
    /// the early pages.
    15 "brought by" Brought(brought: Brought),
    /// Migrator: the log is read and cleared. After.
    16 "harvested" LogHarvested(log: Log),
    /// Migrator: the harvest is complete. After.
    17 "harvest ends" HarvestEnd,
    /// Migrator: took these pages out of the migration bitmap. After.
    18 "claims" Claim(pages: PageBits),
    /// Migrator: does not send these claimed pages, as they are hinted. After the map was read.
    19 "skips as hinted" Skip(pages: PageBits),
    /// Migrator: copies these claimed pages to send them. Before.
    20 "copies" Copy(pages: PageBits),
    /// Migrator: these pages of the last copy are zero.
    21 "finds zero" Zero(pages: PageBits),
    /// Migrator: this many copied pages have been sent. After.
    22 "pages sent:" PagesSent(count: u64),
    /// Migrator: the destination has been told that these pages are zero. After.
    23 "sends as zero" ZeroSent(pages: PageRange),
    /// Migrator: the destination has been told to discard what it has of these pages. After.
    24 "sends as discarded" DiscardSent(pages: PageRange),
    /// Migrator: the round with this number has been sent. After.
    25 "round sent:" RoundSent(round: u64),
    /// Migrator: the guest is stopped. After.
    26 "guest is stopped" Paused,
    /// Migrator: devices no longer write to guest memory. After.
    27 "devices are stopped" DevicesStopped,
    /// Migrator: gives the guest to the destination. Before the first byte of the hand-over is sent.
    28 "hands over" HandOver,
    /// Migrator: the hand-over was not sent; the guest is still here. After.
    29 "did not hand over" HandOverVoid,
    /// Migrator: lets the guest run on here, if it was stopped. Before.
    30 "resumes the guest" Resuming,
    /// Migrator: the log is stopped. After.
    31 "log stopped:" LogStopped(log: Log),
    /// Migrator: the device has confirmed that hinting is over. After.
    32 "device was told DONE" Done,
    /// Migrator: the migration is over. After.
    33 "migration ends" End(outcome: Outcome),
    /// Machine: runs its vCPUs. Before.
    34 "runs the guest" Run,
    /// Machine: its vCPUs are stopped. After.
    35 "stopped the guest" Stopped,
    /// Machine: has loaded an arriving guest, which it does not own yet. After.
    36 "has loaded a guest" Loaded,
    /// Machine: the hand-over has arrived, and the machine owns the guest. Before the guest may run.
    37 "takes the guest over" TakenOver,
    /// Device: the guest has given these pages up, by the inflate or the reporting queue. Before they are used.
    38 "guest gave up" GivenUp(pages: PageRange),
    /// Device: the guest has deflated these pages. Before its buffer is returned.
    39 "guest took back" TakenBack(pages: PageRange),
    /// Device: gives the memory of these pages back to the host. Before.
    40 "discards" Discarding(pages: PageRange),
    /// Device: could not give the memory back. After.
    41 "did not discard" NotDiscarded(pages: PageRange),
    /// Migrator: begins to harvest logs in the middle of a round and leaves the epoch open. Before the first is read.
    42 "early harvest begins" EarlyBegin,
    /// Migrator: the early harvest is complete: its pages are read and cleared. After.
    43 "early harvest ends" EarlyEnd,
    /// Migrator: takes these pages of the last copy for holes without reading them. Before they are recorded as zero.
    44 "takes for holes" HoleTaken(pages: PageBits),
    /// Migrator: an operator has decided for this host. Before the guest may run.
    45 "operator decides for this host" Decided,
    /// Migrator: sends on this many channels, which may overtake each other. Before the first page is sent.
    46 "channels:" Channels(count: u64),
    /// Migrator: the destination has everything that was sent on all channels. After.
    47 "channels are drained" Drained,
    /// Migrator: lends the destination the memory itself, so that no page needs to be sent. Before.
    48 "lends the memory" Lent,
    /// Migrator: is about to discard these pages at the destination, as they were hinted after they had been sent. After the map
    /// was read, before they are sent as discarded.
    49 "discards as hinted late" LateDiscard(pages: PageBits),
    /// Machine: is about to load a guest from a snapshot file: it is another guest from now on, and nobody hands it over. Before.
    50 "restores a guest from a file" Restoring,
    /// Migrator: throttles the guest by so many percent. Before the guest becomes slower; 0 at the end, after it is at full speed.
    51 "throttles the guest by percent:" Throttles(percent: u64),
    /// Machine: took these pages out of a vCPU's ring, outside of a harvest. The log has them still. Before they are protected again.
    52 "takes out of a ring" RingTaken(pages: PageBits),
    /// Migrator: these pages are sent after the hand-over; until then the destination has nothing there. Before it is told.
    60 "promises" Promised(pages: PageRange),
}

/// An event and who recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who.
    pub actor: Actor,
    /// What.
    pub event: Event,
}

impl Record {
    /// The words of a slot. The first is never 0.
    pub(super) fn to_words(self) -> [u64; SLOT_WORDS] {
        let (number, fields) = self.event.put();
        let head = u64::from(number)
            | (self.actor.role as u64) << 8
            | u64::from(self.actor.host) << 16
            | u64::from(fields.extra) << 32;
        [head, fields.epoch, fields.first, fields.value]
    }

    /// Reads the words of a slot; `None` if this build does not know the record.
    pub(super) fn from_words([head, epoch, first, value]: [u64; SLOT_WORDS]) -> Option<Self> {
        let [number, role, low, high, ..] = head.to_le_bytes();
        let fields = Fields {
            extra: (head >> 32) as u32,
            epoch,
            first,
            value,
        };
        Some(Self {
            actor: Actor {
                role: Role::from_raw(role)?,
                host: u16::from_le_bytes([low, high]),
            },
            event: Event::take(number, fields)?,
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.actor, self.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_record_that_can_be_read_is_written_as_it_was(
            kind in proptest::sample::select(NUMBERS), role in 0u8..5, host: u16,
            extra in 0u32..0x500, epoch: u64, first: u64, value in prop_oneof![0u64..6, any::<u64>()],
        ) {
            let head = u64::from(kind) | u64::from(role) << 8 | u64::from(host) << 16 | u64::from(extra) << 32;
            if let Some(record) = Record::from_words([head, epoch, first, value]) {
                let words = record.to_words();
                prop_assert_eq!(words[0] as u32, head as u32);
                prop_assert_eq!(Record::from_words(words), Some(record));
            }
        }

        #[test]
        fn no_words_make_the_reader_panic(words: [u64; SLOT_WORDS]) {
            if let Some(record) = Record::from_words(words) {
                let _ = std::format!("{record}");
            }
        }
    }

    #[test]
    fn numbers_are_given_once_and_none_is_zero() {
        let mut numbers = std::vec::Vec::from(NUMBERS);
        numbers.dedup();
        assert_eq!(numbers, NUMBERS);
        assert!(numbers.is_sorted() && numbers[0] > 0);
    }
}
