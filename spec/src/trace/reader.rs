// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a trace that nobody writes to any more.

use core::fmt;

use super::{
    HEADER_BYTES, MAGIC, MAGIC_WORD, Record, SLOT_BYTES, SLOT_WORDS, SLOTS_WORD, TAKEN_WORD,
    VERSION, VERSION_WORD, bytes_for,
};

/// Bytes that are no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// The first word is not [`MAGIC`].
    Magic(u64),
    /// Another version than [`VERSION`].
    Version(u64),
    /// Too few bytes for the slots that its header claims.
    TooSmall {
        /// Slots the header claims.
        slots: u64,
    },
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "not a trace: it starts with {found:#x}"),
            Self::Version(found) => write!(f, "trace version {found}, this build knows {VERSION}"),
            Self::TooSmall { slots } => write!(f, "trace too small for its {slots} slots"),
        }
    }
}

impl core::error::Error for TraceError {}

/// A trace in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    slots: u64,
    taken: u64,
}

impl<'a> Reader<'a> {
    /// Opens the trace in `bytes`.
    ///
    /// # Errors
    /// [`TraceError`] for bytes that are no trace.
    pub fn open(bytes: &'a [u8]) -> Result<Self, TraceError> {
        let slots = slots(
            word(bytes, MAGIC_WORD),
            word(bytes, VERSION_WORD),
            word(bytes, SLOTS_WORD),
        )?;
        if bytes_for(slots).is_none_or(|needed| needed > bytes.len() as u64) {
            return Err(TraceError::TooSmall { slots });
        }
        Ok(Self {
            bytes,
            slots,
            taken: word(bytes, TAKEN_WORD).unwrap_or(0),
        })
    }

    /// Records that found no room.
    pub fn dropped(&self) -> u64 {
        self.taken.saturating_sub(self.slots)
    }

    /// The slots that were taken, in order. `None` for one that is empty, as who took it died, or that
    /// holds nothing this build knows.
    pub fn records(&self) -> impl Iterator<Item = Option<Record>> + use<'a> {
        let slots = &self.bytes[HEADER_BYTES..];
        // `open` has shown that all slots are there, so they can be counted.
        let taken = self.taken.min(self.slots) as usize;
        slots.chunks_exact(SLOT_BYTES).take(taken).map(|slot| {
            let mut words = [0; SLOT_WORDS];
            for (at, value) in words.iter_mut().enumerate() {
                *value = word(slot, at)?;
            }
            Record::from_words(words)
        })
    }
}

/// The slots that a header claims, if it is one.
pub(super) fn slots(
    magic: Option<u64>,
    version: Option<u64>,
    slots: Option<u64>,
) -> Result<u64, TraceError> {
    let (Some(magic), Some(version), Some(slots)) = (magic, version, slots) else {
        return Err(TraceError::TooSmall { slots: 0 });
    };
    if magic != MAGIC {
        return Err(TraceError::Magic(magic));
    }
    if version != VERSION {
        return Err(TraceError::Version(version));
    }
    Ok(slots)
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    let field = bytes.get(index * 8..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageRange;
    use crate::sync::{AtomicU64, Ordering};
    use crate::trace::{Actor, Event, Recorder, Role};
    use std::vec::Vec;

    fn memory(slots: u64) -> Vec<AtomicU64> {
        let words = bytes_for(slots).unwrap() / 8;
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    fn bytes(words: &[AtomicU64]) -> Vec<u8> {
        let values = words.iter().map(|word| word.load(Ordering::Relaxed));
        values.flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn what_several_parts_record_is_read_in_one_order() {
        let words = memory(8);
        Recorder::format(&words[..], 8).unwrap();
        let device = Recorder::open(&words[..], 1).unwrap();
        let machine = Recorder::open(&words[..], 2).unwrap();
        let hole = Event::Hole(PageRange::new(5, 7).unwrap());
        machine.record(Role::Migrator, hole);
        device.record(Role::Device, Event::Published(3));
        machine.record(Role::Machine, Event::Run);
        let bytes = bytes(&words);
        let reader = Reader::open(&bytes).unwrap();
        let records: Vec<_> = reader.records().map(Option::unwrap).collect();
        let expected = [
            (Role::Migrator, 2, hole),
            (Role::Device, 1, Event::Published(3)),
            (Role::Machine, 2, Event::Run),
        ]
        .map(|(role, host, event)| Record {
            actor: Actor { role, host },
            event,
        });
        assert_eq!(records, expected);
        assert_eq!(reader.dropped(), 0);
    }

    #[test]
    fn a_full_trace_counts_what_it_drops() {
        let words = memory(2);
        Recorder::format(&words[..], 2).unwrap();
        let recorder = Recorder::open(&words[..], 0).unwrap();
        for _ in 0..5 {
            recorder.record(Role::Machine, Event::Run);
        }
        let bytes = bytes(&words);
        let reader = Reader::open(&bytes).unwrap();
        assert_eq!((reader.records().count(), reader.dropped()), (2, 3));
    }

    #[test]
    fn a_slot_whose_owner_died_is_none() {
        let words = memory(2);
        Recorder::format(&words[..], 2).unwrap();
        words[TAKEN_WORD].fetch_add(1, Ordering::Relaxed);
        Recorder::open(&words[..], 0)
            .unwrap()
            .record(Role::Machine, Event::Run);
        let bytes = bytes(&words);
        let records = Reader::open(&bytes).unwrap().records();
        let is_there: Vec<_> = records.map(|record| record.is_some()).collect();
        assert_eq!(is_there, [false, true]);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        let words = memory(2);
        assert_eq!(
            Reader::open(&bytes(&words)).unwrap_err(),
            TraceError::Magic(0)
        );
        Recorder::format(&words[..], 2).unwrap();
        let good = bytes(&words);
        for length in [0, 8, 24, 4095, good.len() - 1] {
            assert!(Reader::open(&good[..length]).is_err(), "{length} bytes");
        }
        for slots in [3, u64::MAX] {
            words[SLOTS_WORD].store(slots, Ordering::Relaxed);
            let claimed = TraceError::TooSmall { slots };
            assert_eq!(Reader::open(&bytes(&words)).unwrap_err(), claimed);
            assert_eq!(Recorder::open(&words[..], 0).unwrap_err(), claimed);
        }
    }
}
