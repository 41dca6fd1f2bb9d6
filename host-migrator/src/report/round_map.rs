// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A map of each round: it divides guest memory into cells of equal size, and counts for each cell what the round did with
//! its pages.
//!
//! It is kept only on request ([`MigrationParams::map_rounds`](crate::MigrationParams)). It costs a few additions for
//! each 64-page word that is sent or skipped, a byte for each page (the round that sent it last), and at most 64 rows
//! of 1024 cells, however long the migration takes.

use serde::{Deserialize, Serialize};
use spec::PageRange;
use spec::hint_map::{bits_of, word_masks};

use crate::memory::bitmap::MigrationBitmap;
use crate::memory::guest_memory::GuestMemory;

/// The most cells of a map.
pub const MAX_CELLS: u64 = 1024;
/// The most rows of a map: all later rounds share the last one.
pub const MAX_ROWS: usize = 64;
/// A word of the migration bitmap lies in one cell.
const WORD_PAGES: u64 = 64;

/// A migration's work by round and guest-physical address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RoundMaps {
    /// Pages (4 KiB) of a cell: a power of two. Cell `n` begins at page `n * cell_pages`, guest-physical.
    pub cell_pages: u64,
    /// How many pages of each cell are guest memory.
    pub memory: Vec<u64>,
    /// A row for each round. The rounds from the 64th on share the last row.
    pub rows: Vec<RoundMap>,
}

/// What one row's rounds did with the pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RoundMap {
    /// The first round of the row, from 1.
    pub first_round: u32,
    /// The last round of the row.
    pub last_round: u32,
    /// The cells, in order.
    pub cells: Vec<Fates>,
}

/// What a round did with a cell's pages. A page that is not in [`Fates::sent`], [`Fates::zero`], [`Fates::skipped`] or
/// [`Fates::holes`] was not pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
#[non_exhaustive]
pub struct Fates {
    /// Sent with their content.
    pub sent: u64,
    /// Found to be zero, or a hole in a later round.
    pub zero: u64,
    /// Not sent because the guest hinted them.
    pub skipped: u64,
    /// Left out as never touched before the first round.
    pub holes: u64,
    /// Of the sent pages, those of which the destination already had older content.
    pub resent: u64,
    /// Of the sent pages, those that were hinted later, in this round or a later one, and not sent again before that.
    pub in_vain: u64,
    /// Pages that were hinted in this round although the destination has their content, for the first time since it got
    /// it. An earlier round may have sent it.
    pub late: u64,
}

impl Fates {
    /// The sum of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            zero: self.zero + other.zero,
            skipped: self.skipped + other.skipped,
            holes: self.holes + other.holes,
            resent: self.resent + other.resent,
            in_vain: self.in_vain + other.in_vain,
            late: self.late + other.late,
        }
    }
}

/// Written in short form: zeros at the end are left out.
impl From<Fates> for Vec<u64> {
    fn from(fates: Fates) -> Self {
        let mut numbers = vec![
            fates.sent,
            fates.zero,
            fates.skipped,
            fates.holes,
            fates.resent,
            fates.in_vain,
            fates.late,
        ];
        while numbers.pop_if(|number| *number == 0).is_some() {}
        numbers
    }
}

impl From<Vec<u64>> for Fates {
    fn from(numbers: Vec<u64>) -> Self {
        let number = |index| numbers.get(index).copied().unwrap_or(0);
        Self {
            sent: number(0),
            zero: number(1),
            skipped: number(2),
            holes: number(3),
            resent: number(4),
            in_vain: number(5),
            late: number(6),
        }
    }
}

impl RoundMap {
    /// The fates of the whole memory.
    pub fn sum(&self) -> Fates {
        self.cells
            .iter()
            .copied()
            .fold(Fates::default(), Fates::plus)
    }
}

/// Makes [`RoundMaps`] while a migration runs; by default it makes none.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Option<Recording>);

#[derive(Debug)]
struct Recording {
    maps: RoundMaps,
    sent_in: SentIn,
}

/// For each page of memory the row that sent it last, counted from 1; 0 if no row did, or if the page has been counted
/// as sent in vain.
#[derive(Debug)]
struct SentIn(Vec<(PageRange, Box<[u8]>)>);

impl SentIn {
    fn new(regions: &[PageRange]) -> Self {
        let region =
            |region: &PageRange| (*region, vec![0; region.count() as usize].into_boxed_slice());
        Self(regions.iter().map(region).collect())
    }

    /// The row of `page`, if it is memory.
    fn row(&mut self, page: u64) -> Option<&mut u8> {
        let below = self.0.partition_point(|(region, _)| region.end() <= page);
        let (region, rows) = self.0.get_mut(below)?;
        rows.get_mut(page.checked_sub(region.first())? as usize)
    }
}

impl Recorder {
    /// For a guest with `ram`. The pages in `pending` are to be sent; the others are holes.
    pub(crate) fn new(ram: &dyn GuestMemory, pending: &MigrationBitmap) -> Self {
        let pages = ram.layout().bitmap_pages();
        let cell_pages = pages
            .div_ceil(MAX_CELLS)
            .next_power_of_two()
            .max(WORD_PAGES);
        let cells = pages.div_ceil(cell_pages) as usize;
        let mut memory = vec![0; cells];
        let mut first = vec![Fates::default(); cells];
        for (index, mask) in ram
            .layout()
            .regions()
            .iter()
            .flat_map(|region| word_masks(*region))
        {
            let cell = (index as u64 * WORD_PAGES / cell_pages) as usize;
            memory[cell] += count(mask);
            first[cell].holes += count(mask & !pending.load(index));
        }
        let maps = RoundMaps {
            cell_pages,
            memory,
            rows: vec![RoundMap {
                first_round: 1,
                last_round: 1,
                cells: first,
            }],
        };
        Self(Some(Recording {
            maps,
            sent_in: SentIn::new(ram.layout().regions()),
        }))
    }

    /// Begins round `round`.
    pub(crate) fn begin(&mut self, round: u32) {
        let Some(Recording { maps, .. }) = &mut self.0 else {
            return;
        };
        let full = maps.rows.len() == MAX_ROWS;
        match maps.rows.last_mut() {
            Some(last) if full || last.last_round == round => last.last_round = round,
            _ => maps.rows.push(RoundMap {
                first_round: round,
                last_round: round,
                cells: vec![Fates::default(); maps.memory.len()],
            }),
        }
    }

    /// The pages `bits` of word `index` were sent. The destination had the pages `there` of the word before.
    pub(crate) fn sent(&mut self, index: usize, bits: u64, there: u64) {
        let Some(recording) = self.0.as_mut().filter(|_| bits != 0) else {
            return;
        };
        let row = recording.maps.rows.len() as u8;
        let fates = recording.fates(index);
        fates.sent += count(bits);
        fates.resent += count(bits & there);
        for page in pages_of(index, bits) {
            if let Some(sent_in) = recording.sent_in.row(page) {
                *sent_in = row;
            }
        }
    }

    /// The pages `bits` of word `index` are zero.
    pub(crate) fn zero(&mut self, index: usize, bits: u64) {
        if let Some(recording) = &mut self.0 {
            recording.fates(index).zero += count(bits);
        }
    }

    /// The pages `bits` of word `index` were not sent because of a hint. The destination has old content of the pages
    /// `stale`.
    pub(crate) fn skipped(&mut self, index: usize, bits: u64, stale: u64) {
        if let Some(recording) = &mut self.0 {
            recording.fates(index).skipped += count(bits);
            recording.sent_in_vain(index, stale);
        }
    }

    /// The pages `bits` of word `index` were hinted, and the destination has them.
    pub(crate) fn late(&mut self, index: usize, bits: u64) {
        if let Some(recording) = &mut self.0 {
            recording.fates(index).late += count(bits);
            recording.sent_in_vain(index, bits);
        }
    }

    /// The maps, if they were requested.
    pub(crate) fn finish(&mut self) -> Option<RoundMaps> {
        self.0.take().map(|recording| recording.maps)
    }
}

impl Recording {
    /// The fates of the cell of word `index`, in the row of the current round.
    fn fates(&mut self, index: usize) -> &mut Fates {
        let row = self.maps.rows.len() - 1;
        self.fates_in(row, index)
    }

    fn fates_in(&mut self, row: usize, index: usize) -> &mut Fates {
        let cell = (index as u64 * WORD_PAGES / self.maps.cell_pages) as usize;
        &mut self.maps.rows[row].cells[cell]
    }

    /// Counts the pages `bits` of word `index` as sent in vain, in the rows that sent them last.
    fn sent_in_vain(&mut self, index: usize, bits: u64) {
        for page in pages_of(index, bits) {
            let row = self.sent_in.row(page).map_or(0, std::mem::take);
            if let Some(row) = usize::from(row).checked_sub(1) {
                self.fates_in(row, index).in_vain += 1;
            }
        }
    }
}

fn count(bits: u64) -> u64 {
    u64::from(bits.count_ones())
}

/// The numbers of the pages `bits` of word `index`.
fn pages_of(index: usize, bits: u64) -> impl Iterator<Item = u64> {
    bits_of(bits).map(move |bit| index as u64 * WORD_PAGES + bit as u64)
}

#[cfg(test)]
mod tests {
    use spec::PAGE_SIZE;

    use super::*;
    use crate::memory::ram::GuestRam;
    use crate::memory::ram_region::RamRegion;

    /// Memory with these regions: first page and number of pages.
    fn ram(regions: &[(u64, u64)]) -> GuestRam {
        let region = |(first, pages): &(u64, u64)| {
            RamRegion::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
        };
        GuestRam::map(regions.iter().map(region).collect()).unwrap()
    }

    fn all_of(ram: &dyn GuestMemory) -> MigrationBitmap {
        let pending = MigrationBitmap::new(ram.layout().bitmap_pages());
        for region in ram.layout().regions() {
            pending.insert(*region);
        }
        pending
    }

    #[test]
    fn cells_are_powers_of_two_and_hold_whole_words() {
        for (pages, cell_pages, cells) in [
            (1, 64, 1),
            (64 * 1024, 64, 1024),
            (64 * 1024 + 1, 128, 513),
            (1_000_000, 1024, 977),
        ] {
            let ram = ram(&[(0, pages)]);
            let maps = Recorder::new(&ram, &all_of(&ram)).finish().unwrap();
            assert_eq!((maps.cell_pages, maps.memory.len()), (cell_pages, cells));
            assert_eq!(maps.memory.iter().sum::<u64>(), pages);
        }
    }

    #[test]
    fn what_is_not_to_be_sent_at_first_is_a_hole_and_what_is_no_memory_is_nothing() {
        let ram = ram(&[(0, 100), (256, 64)]);
        let pending = all_of(&ram);
        pending.remove(PageRange::new(90, 180).unwrap());
        let maps = Recorder::new(&ram, &pending).finish().unwrap();
        assert_eq!(maps.memory, [64, 36, 0, 0, 64]);
        let holes: Vec<u64> = maps.rows[0].cells.iter().map(|cell| cell.holes).collect();
        assert_eq!(holes, [0, 10, 0, 0, 14]);
    }

    #[test]
    fn a_page_that_is_hinted_later_was_sent_in_vain_by_the_round_that_sent_it_last() {
        let ram = ram(&[(0, 128)]);
        let mut recorder = Recorder::new(&ram, &all_of(&ram));
        recorder.begin(1);
        recorder.sent(0, 0b1111, 0);
        recorder.late(0, 0b0001);
        recorder.begin(2);
        recorder.sent(0, 0b0010, 0b1111);
        recorder.sent(1, 0b1, 0);
        recorder.skipped(0, 0b1_0100, 0b0100);
        // The guest hints all its free pages in each round. A page that was counted is not counted again.
        recorder.late(0, 0b0011);
        recorder.begin(3);
        recorder.zero(1, 0b1);
        recorder.late(0, 0b0011);
        let maps = recorder.finish().unwrap();
        let rounds: Vec<Fates> = maps.rows.iter().map(RoundMap::sum).collect();
        assert_eq!(
            (rounds[0].sent, rounds[0].in_vain, rounds[0].late),
            (4, 2, 1)
        );
        assert_eq!(
            (rounds[1].sent, rounds[1].resent, rounds[1].skipped),
            (2, 1, 2)
        );
        assert_eq!((rounds[1].in_vain, rounds[1].late), (1, 2));
        assert_eq!(
            (rounds[2].zero, rounds[2].in_vain, rounds[2].late),
            (1, 0, 2)
        );
        assert_eq!(maps.rows[1].cells[1].sent, 1);
    }

    #[test]
    fn a_migration_without_end_has_a_map_with_an_end() {
        let ram = ram(&[(0, 64)]);
        let mut recorder = Recorder::new(&ram, &all_of(&ram));
        for round in 1..=1000 {
            recorder.begin(round);
            recorder.sent(0, 1, 0);
        }
        recorder.late(0, 1);
        let maps = recorder.finish().unwrap();
        assert_eq!(maps.rows.len(), MAX_ROWS);
        let last = maps.rows.last().unwrap();
        assert_eq!((last.first_round, last.last_round), (64, 1000));
        assert_eq!((last.sum().sent, last.sum().in_vain), (937, 1));
    }

    #[test]
    fn fates_are_written_short_and_read_again() {
        let fates = Fates {
            sent: 3,
            skipped: 7,
            ..Fates::default()
        };
        assert_eq!(serde_json::to_string(&fates).unwrap(), "[3,0,7]");
        let some = [fates, Fates::default()];
        let text = serde_json::to_string(&some).unwrap();
        assert_eq!(serde_json::from_str::<[Fates; 2]>(&text).unwrap(), some);
    }

    #[test]
    fn nothing_is_kept_unless_it_is_asked_for() {
        let mut recorder = Recorder::default();
        recorder.begin(1);
        recorder.sent(0, 1, 0);
        recorder.late(0, 1);
        assert_eq!(recorder.finish(), None);
    }
}
