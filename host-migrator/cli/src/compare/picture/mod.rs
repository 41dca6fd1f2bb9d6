// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pictures of migrations: each round is a row. It shows guest memory from the lowest address to the highest, and
//! what the round did with it.
//!
//! | module | what it is |
//! |---|---|
//! | [`svg`] | a file with every mode that was compared |
//! | [`terminal`] | a line of characters for each round of the mode with hints |
//!
//! Example: `host-migrator/cli/doc/compare.svg`, a stock Linux guest, made by `lacuna compare --guest linux
//! --memory 512M --in-use 64M --freed 256M --dirty-rate 2M --hints off,on --picture compare.svg`.

pub mod svg;
pub mod terminal;

use host_migrator::RoundMaps;
use host_migrator::report::round_map::{Fates, RoundMap};
use spec::PAGE_SIZE;

use crate::compare::Record;
use crate::size::Size;

/// What a round did with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Sent for the first time.
    Sent,
    /// Sent again: the guest had written it since.
    Again,
    /// Sent, for the first time or again, although a hint that came later says that it was free.
    Vain,
    /// Not sent because of a hint.
    Skipped,
    /// Not sent because it is zero, or was never touched.
    Empty,
    /// Not to be sent in this round.
    Rest,
}

impl Fate {
    /// All of them, in this order.
    pub const ALL: [Self; 6] = [
        Self::Sent,
        Self::Again,
        Self::Vain,
        Self::Skipped,
        Self::Empty,
        Self::Rest,
    ];

    /// In a legend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Again => "sent again",
            Self::Vain => "sent in vain",
            Self::Skipped => "free, skipped",
            Self::Empty => "zero or never touched",
            Self::Rest => "not to be sent in this round",
        }
    }
}

/// How many pages of a range met each of [`Fate::ALL`]: every page is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Column([u64; 6]);

impl Column {
    fn new(fates: Fates, memory: u64) -> Self {
        let vain = fates.in_vain;
        // A page may have been both. It is not recorded which pages were.
        let again = fates.resent.min(fates.sent - vain.min(fates.sent));
        let sent = fates.sent.saturating_sub(vain + again);
        let empty = fates.zero + fates.holes;
        let rest = memory.saturating_sub(fates.sent + fates.skipped + empty);
        Self([sent, again, vain, fates.skipped, empty, rest])
    }

    /// Its pages of guest memory.
    pub fn memory(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that met `fate`.
    pub fn pages(&self, fate: Fate) -> u64 {
        self.0[fate as usize]
    }

    /// Those that were sent, in vain or not.
    pub fn all_sent(&self) -> u64 {
        [Fate::Sent, Fate::Again, Fate::Vain]
            .into_iter()
            .map(|fate| self.pages(fate))
            .sum()
    }
}

/// How many cells form a column if there is room for `columns` columns.
fn cells_a_column(maps: &RoundMaps, columns: usize) -> usize {
    maps.memory.len().div_ceil(columns.max(1)).max(1)
}

/// `row` in columns of `cells` cells each.
fn columns(maps: &RoundMaps, row: &RoundMap, cells: usize) -> Vec<Column> {
    let fates = row.cells.chunks(cells);
    let memory = maps.memory.chunks(cells);
    fates
        .zip(memory)
        .map(|(fates, memory)| {
            let fates = fates.iter().copied().fold(Fates::default(), Fates::plus);
            Column::new(fates, memory.iter().sum())
        })
        .collect()
}

/// The whole of `row` as one column.
fn whole(maps: &RoundMaps, row: &RoundMap) -> Column {
    Column::new(row.sum(), maps.memory.iter().sum())
}

/// Bytes of a column of `cells` cells.
fn column_bytes(maps: &RoundMaps, cells: usize) -> u64 {
    maps.cell_pages * PAGE_SIZE * cells as u64
}

/// The first run of each mode that has maps.
fn first_runs(records: &[Record]) -> Vec<(&Record, &RoundMaps)> {
    let mut runs: Vec<(&Record, &RoundMaps)> = Vec::new();
    for record in records {
        if let Some(maps) = &record.maps
            && runs.iter().all(|(run, _)| run.hints != record.hints)
        {
            runs.push((record, maps));
        }
    }
    runs
}

/// A row's name: its rounds. In the last round the guest is stopped.
fn label(row: &RoundMap, is_last: bool) -> String {
    match (row.first_round, row.last_round) {
        (_, last) if is_last && row.first_round == last => format!("{last}, stopped"),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first} to {last}"),
    }
}

fn size(pages: u64) -> Size {
    Size(pages * PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use host_migrator::report::round_map::Fates;

    use super::*;
    use crate::compare::record;
    use crate::control::HintMode;

    /// Two rounds of a guest with 4 cells of 64 pages. There is no memory at the third cell.
    pub fn maps() -> RoundMaps {
        // sent, zero, skipped, holes, resent, in vain
        let maps = serde_json::json!({
            "cell-pages": 64,
            "memory": [64, 64, 0, 32],
            "rows": [
                {
                    "first-round": 1,
                    "last-round": 1,
                    "cells": [[64, 0, 0, 0, 0, 16], [0, 4, 60, 0, 0, 0], [], [0, 0, 0, 32, 0, 0]],
                },
                {
                    "first-round": 2,
                    "last-round": 2,
                    "cells": [[8, 0, 0, 0, 8, 0], [], [], []],
                },
            ],
        });
        serde_json::from_value(maps).unwrap()
    }

    /// A run with these maps.
    pub fn record(hints: HintMode, maps: Option<RoundMaps>) -> Record {
        Record {
            memory_bytes: 160 << 12,
            in_use_bytes: 64 << 12,
            rounds: 2,
            maps,
            ..record::tests::record(hints, 300_000)
        }
    }

    #[test]
    fn every_page_of_a_column_has_one_fate() {
        let maps = maps();
        let first = columns(&maps, &maps.rows[0], 1);
        let expected = [
            [48, 0, 16, 0, 0, 0],
            [0, 0, 0, 60, 4, 0],
            [0; 6],
            [0, 0, 0, 0, 32, 0],
        ];
        assert_eq!(first, expected.map(Column));
        let second = columns(&maps, &maps.rows[1], 2);
        assert_eq!(
            second,
            [[0, 8, 0, 0, 0, 120], [0, 0, 0, 0, 0, 32]].map(Column)
        );
        for row in &maps.rows {
            let whole = whole(&maps, row);
            assert_eq!(whole.memory(), 160);
            assert_eq!(whole.all_sent(), row.sum().sent);
        }
    }

    #[test]
    fn a_page_that_was_sent_again_and_in_vain_is_counted_once() {
        let mut fates = Fates::default();
        (fates.sent, fates.resent, fates.in_vain) = (10, 8, 6);
        assert_eq!(Column::new(fates, 16), Column([0, 4, 6, 0, 0, 6]));
    }

    #[test]
    fn as_many_columns_as_fit() {
        let maps = maps();
        for (room, cells) in [(0, 4), (1, 4), (2, 2), (3, 2), (4, 1), (100, 1)] {
            assert_eq!(cells_a_column(&maps, room), cells);
        }
    }

    #[test]
    fn each_mode_is_drawn_once_and_only_if_there_is_a_map() {
        let records = [
            record(HintMode::Off, None),
            record(HintMode::On, Some(maps())),
            record(HintMode::On, Some(maps())),
            record(HintMode::Off, Some(maps())),
        ];
        let modes: Vec<String> = first_runs(&records)
            .into_iter()
            .map(|(record, _)| record.hints.to_string())
            .collect();
        assert_eq!(modes, ["on", "off"]);
    }
}
