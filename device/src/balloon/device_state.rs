// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's state for a migration.
//!
//! ```text
//! byte 0  magic "LBAL"     4  version (2)    8  pages asked for    12  pages wanted
//!     16  actual pages    20  page poison   24  last command id    28  chunks
//!     32  features, 8 bytes
//!     40  the pages in the balloon, a chunk of 128 MiB after the other
//! ```
//!
//! A chunk has its number, the count of its runs, and the first and last page of each run, as 2 bytes each. If a bitmap
//! is shorter, the count is 0 and the bitmap follows; so a page never takes more than a bit. A set of more than 8 MiB is
//! left out, which is safe: the device then only knows less about which huge pages it may discard. All numbers are
//! little-endian. Version 1, which ended after the command id and had no pages wanted, is still read.

use spec::PageRange;
use spec::balloon::CommandId;

use crate::balloon::sparse_page_set::{CHUNK_PAGES, CHUNK_WORDS, Chunk, SparsePageSet, runs_of};

const MAGIC: [u8; 4] = *b"LBAL";
const VERSION: u32 = 2;
/// Bytes before the chunks.
const HEADER_BYTES: usize = 40;
/// The longest state.
pub const MAX_BYTES: usize = HEADER_BYTES + (8 << 20);
/// Bytes of a chunk's bitmap.
const BITMAP_BYTES: usize = CHUNK_WORDS * 8;
/// The balloon counts pages with 32 bits.
const LAST_CHUNK: u64 = u32::MAX as u64 / CHUNK_PAGES;

/// The state of a suspended balloon. An open round of hints is not part of it: at the destination the guest is told DONE.
/// The statistics buffer is not part of it either, because a suspended device has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Pages the guest is asked to have in the balloon.
    pub num_pages: u32,
    /// Pages the host wants in the balloon.
    pub wanted: u32,
    /// Pages in the balloon, according to the guest.
    pub actual: u32,
    /// The guest's page poison value.
    pub poison_val: u32,
    /// The last command id. It must not be used again.
    pub command_id: CommandId,
    /// The negotiated features; 0 if they are not known.
    pub features: u64,
    /// The pages in the balloon, as far as they are known.
    pub ballooned: SparsePageSet,
}

/// The bytes are not the state of a balloon, or do not fit this one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Too short or too long.
    #[error("the state of a balloon does not have {found} bytes")]
    Length {
        /// Bytes that came.
        found: usize,
    },
    /// A wrong magic number.
    #[error("this is not the state of a balloon")]
    Magic,
    /// Of another version.
    #[error("the balloon state has version {0}; this build knows 1 to {VERSION}")]
    Version(u32),
    /// The command id is a reserved number.
    #[error("balloon state with the reserved command id {0}")]
    CommandId(u32),
    /// The guest is asked for more pages than the host wants.
    #[error("the balloon state asks the guest for {num_pages} pages, but only {wanted} are wanted")]
    Target {
        /// Pages the guest is asked for.
        num_pages: u32,
        /// Pages the host wants.
        wanted: u32,
    },
    /// The guest uses features that it cannot have here.
    #[error("the balloon state is of a guest with features {taken:#x}, but here it has {here:#x}")]
    Features {
        /// What the state says.
        taken: u64,
        /// What this device and its front end say.
        here: u64,
    },
    /// The pages in the balloon are encoded wrongly.
    #[error("the balloon state has an invalid set of pages, in chunk {0}")]
    Pages(u32),
}

impl DeviceState {
    /// The bytes to transfer.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut chunks = Vec::new();
        let mut count: u32 = 0;
        for (number, chunk) in self
            .ballooned
            .chunks()
            .take_while(|chunk| chunk.0 <= LAST_CHUNK)
        {
            put_chunk(&mut chunks, number as u32, chunk);
            count += 1;
            if HEADER_BYTES + chunks.len() > MAX_BYTES {
                break;
            }
        }
        if HEADER_BYTES + chunks.len() > MAX_BYTES {
            log::warn!("the pages in the balloon are too scattered to migrate with the device");
            chunks.clear();
            count = 0;
        }
        let words = [
            u32::from_le_bytes(MAGIC),
            VERSION,
            self.num_pages,
            self.wanted,
            self.actual,
            self.poison_val,
            self.command_id.get(),
            count,
        ];
        let mut bytes = Vec::with_capacity(HEADER_BYTES + chunks.len());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(self.features.to_le_bytes());
        bytes.append(&mut chunks);
        bytes
    }

    /// Reads what [`DeviceState::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`StateError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader {
            rest: bytes,
            length: bytes.len(),
        };
        if reader.take()? != MAGIC {
            return Err(StateError::Magic);
        }
        let state = match reader.u32()? {
            1 => Self::version_1(&mut reader)?,
            2 => Self::version_2(&mut reader)?,
            version => return Err(StateError::Version(version)),
        };
        if !reader.rest.is_empty() {
            return Err(StateError::Length { found: bytes.len() });
        }
        if state.num_pages > state.wanted {
            return Err(StateError::Target {
                num_pages: state.num_pages,
                wanted: state.wanted,
            });
        }
        Ok(state)
    }

    fn version_1(reader: &mut Reader) -> Result<Self, StateError> {
        let num_pages = reader.u32()?;
        Ok(Self {
            num_pages,
            wanted: num_pages,
            actual: reader.u32()?,
            poison_val: reader.u32()?,
            command_id: reader.command_id()?,
            features: 0,
            ballooned: SparsePageSet::default(),
        })
    }

    fn version_2(reader: &mut Reader) -> Result<Self, StateError> {
        let (num_pages, wanted) = (reader.u32()?, reader.u32()?);
        let (actual, poison_val) = (reader.u32()?, reader.u32()?);
        let command_id = reader.command_id()?;
        let chunks = reader.u32()?;
        let features = u64::from_le_bytes(reader.take()?);
        let mut ballooned = SparsePageSet::default();
        let mut next = 0;
        for _ in 0..chunks {
            let number = reader.u32()?;
            if number < next || u64::from(number) > LAST_CHUNK {
                return Err(StateError::Pages(number));
            }
            reader.chunk(number, &mut ballooned)?;
            next = number + 1;
        }
        Ok(Self {
            num_pages,
            wanted,
            actual,
            poison_val,
            command_id,
            features,
            ballooned,
        })
    }
}

/// Appends the chunk in the shorter of its two forms.
fn put_chunk(bytes: &mut Vec<u8>, number: u32, chunk: &Chunk) {
    bytes.extend(number.to_le_bytes());
    let count_at = bytes.len();
    bytes.extend([0; 4]);
    let mut runs: u32 = 0;
    for run in runs_of(chunk) {
        let last = run.end() - 1;
        bytes.extend((run.first() as u16).to_le_bytes());
        bytes.extend((last as u16).to_le_bytes());
        runs += 1;
        if bytes.len() - count_at > BITMAP_BYTES {
            bytes.truncate(count_at + 4);
            bytes.extend(chunk.iter().flat_map(|word| word.to_le_bytes()));
            return;
        }
    }
    bytes[count_at..count_at + 4].copy_from_slice(&runs.to_le_bytes());
}

/// The bytes of a state that are still to be read.
struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let cut = StateError::Length { found: self.length };
        let (field, rest) = self.rest.split_first_chunk().ok_or(cut)?;
        self.rest = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, StateError> {
        self.take().map(u32::from_le_bytes)
    }

    fn command_id(&mut self) -> Result<CommandId, StateError> {
        let raw = self.u32()?;
        CommandId::new(raw).ok_or(StateError::CommandId(raw))
    }

    /// Reads the pages of the chunk with `number` into `set`.
    fn chunk(&mut self, number: u32, set: &mut SparsePageSet) -> Result<(), StateError> {
        let wrong = || StateError::Pages(number);
        let start = u64::from(number) * CHUNK_PAGES;
        let runs = self.u32()?;
        if runs == 0 {
            let bitmap = self.take::<BITMAP_BYTES>()?;
            let mut chunk = [0; CHUNK_WORDS];
            for (word, bytes) in chunk.iter_mut().zip(bitmap.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            let mut pages = runs_of(&chunk)
                .filter_map(|run| PageRange::new(start + run.first(), run.count()))
                .peekable();
            pages.peek().ok_or_else(wrong)?;
            pages.for_each(|run| {
                set.insert(run);
            });
        }
        let mut next = 0;
        for _ in 0..runs {
            let [first, last] = [self.take()?, self.take()?]
                .map(u16::from_le_bytes)
                .map(u64::from);
            // Rising, apart, and within the chunk.
            if first < next || last < first || last >= CHUNK_PAGES {
                return Err(wrong());
            }
            let run = PageRange::new(start + first, last - first + 1).ok_or_else(wrong)?;
            set.insert(run);
            next = last + 2;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> DeviceState {
        let mut ballooned = SparsePageSet::default();
        for (first, count) in [(3, 1), (CHUNK_PAGES - 2, 4), (5 * CHUNK_PAGES, CHUNK_PAGES)] {
            ballooned.insert(PageRange::new(first, count).unwrap());
        }
        DeviceState {
            num_pages: 1,
            wanted: 2,
            actual: 3,
            poison_val: 4,
            command_id: CommandId::new(0x8000_0007).unwrap(),
            features: 5 << 32,
            ballooned,
        }
    }

    /// The state with the word at `at` changed.
    fn with(at: usize, word: u32) -> Result<DeviceState, StateError> {
        let mut bytes = state().to_bytes();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        DeviceState::from_bytes(&bytes)
    }

    #[test]
    fn a_state_that_was_tampered_with_is_refused_by_name() {
        assert_eq!(with(0, 0), Err(StateError::Magic));
        for version in [0, 3, u32::MAX] {
            assert_eq!(with(4, version), Err(StateError::Version(version)));
        }
        assert!(matches!(with(8, 3), Err(StateError::Target { .. })));
        for id in [0, 1] {
            assert_eq!(with(24, id), Err(StateError::CommandId(id)));
        }
        for chunks in [0, 2, 4, u32::MAX] {
            assert!(matches!(with(28, chunks), Err(StateError::Length { .. })));
        }
    }

    #[test]
    fn a_set_of_pages_that_nobody_would_write_is_refused() {
        // The first chunk: its number, its count of runs, and its runs 3..=3 and 32766..=32767.
        assert_eq!(
            with(40, 1),
            Err(StateError::Pages(1)),
            "a number that comes twice"
        );
        assert_eq!(with(40, u32::MAX), Err(StateError::Pages(u32::MAX)));
        let run = |first: u32, last: u32| first | last << 16;
        for (at, word) in [
            (48, run(4, 3)),
            (48, run(3, 32765)),
            (52, run(4, 5)),
            (52, run(32766, 32768)),
        ] {
            assert_eq!(
                with(at, word),
                Err(StateError::Pages(0)),
                "{word:#x} at {at}"
            );
        }
        let mut empty = state();
        empty.ballooned.clear();
        let mut bytes = empty.to_bytes();
        bytes[28..32].copy_from_slice(&1u32.to_le_bytes());
        bytes.extend([0; 8 + BITMAP_BYTES]);
        assert_eq!(DeviceState::from_bytes(&bytes), Err(StateError::Pages(0)));
    }

    #[test]
    fn a_state_that_is_cut_off_anywhere_or_goes_on_is_refused() {
        let bytes = state().to_bytes();
        for length in 0..bytes.len() {
            let result = DeviceState::from_bytes(&bytes[..length]);
            assert_eq!(result, Err(StateError::Length { found: length }));
        }
        let found = bytes.len() + 1;
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(
            DeviceState::from_bytes(&longer),
            Err(StateError::Length { found })
        );
    }

    #[test]
    fn version_1_is_read_with_what_it_says() {
        let words = [u32::from_le_bytes(MAGIC), 1, 7, 6, 5, 0x8000_0003];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let state = DeviceState::from_bytes(&bytes).unwrap();
        assert_eq!((state.num_pages, state.wanted, state.actual), (7, 7, 6));
        assert_eq!((state.poison_val, state.features), (5, 0));
        assert_eq!(state.command_id.get(), 0x8000_0003);
        assert!(state.ballooned.is_empty());
        assert!(DeviceState::from_bytes(&[&bytes[..], &[0; 4]].concat()).is_err());
    }

    #[test]
    fn scattered_pages_cost_a_bit_each_and_more_than_that_stay_behind() {
        let mut scattered = state();
        scattered.ballooned.clear();
        let scatter = |set: &mut SparsePageSet, chunk: u64| {
            for page in 0..1024 {
                set.insert(PageRange::new(chunk * CHUNK_PAGES + page * 32, 1).unwrap());
            }
        };
        scatter(&mut scattered.ballooned, 9);
        let bytes = scattered.to_bytes();
        assert_eq!(bytes.len(), HEADER_BYTES + 8 + BITMAP_BYTES);
        assert_eq!(DeviceState::from_bytes(&bytes).unwrap(), scattered);

        for chunk in 0..=(MAX_BYTES / BITMAP_BYTES) as u64 {
            scatter(&mut scattered.ballooned, chunk);
        }
        let bytes = scattered.to_bytes();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert!(
            DeviceState::from_bytes(&bytes)
                .unwrap()
                .ballooned
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_read_or_refused(
            change in 0usize..72, to: u8, tail in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut bytes = state().to_bytes();
            let at = change % bytes.len();
            bytes[at] = to;
            bytes.truncate(at + 1);
            bytes.extend(tail);
            if let Ok(state) = DeviceState::from_bytes(&bytes) {
                prop_assert_eq!(DeviceState::from_bytes(&state.to_bytes()), Ok(state));
            }
        }
    }
}
