// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The picture for a terminal: a line for each round, in colours, or in letters without colours.

use std::fmt::Write;

use host_migrator::report::round_map::RoundMap;

use super::{Column, Fate, cells_a_column, column_bytes, columns, first_runs, label, size, whole};
use crate::compare::Record;
use crate::control::HintMode;
use crate::size::Size;

/// Columns for the round's number.
const LABEL: usize = 12;
/// Columns for what was sent.
const SENT: usize = 11;
/// Most lines of a picture. Of more rounds, those in the middle are left out.
const MAX_LINES: usize = 16;
/// Rounds at the end that are always shown.
const LAST_LINES: usize = 3;

/// The rounds of the first run with hints, or of the last mode, in lines of `width` columns. Empty without maps.
pub fn draw(records: &[Record], width: usize, colour: bool) -> String {
    let runs = first_runs(records);
    let with_hints = runs.iter().find(|(run, _)| run.hints == HintMode::On);
    let Some((record, maps)) = with_hints.or(runs.last()) else {
        return String::new();
    };
    let cells = cells_a_column(maps, width.saturating_sub(LABEL + SENT + 1).max(8));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "hints {}: guest memory in each round, {} per character, and how much was sent",
        record.hints,
        Size(column_bytes(maps, cells))
    );
    let count = maps.rows.len();
    let hidden = if count > MAX_LINES {
        MAX_LINES - LAST_LINES..count - LAST_LINES
    } else {
        0..0
    };
    for (number, row) in maps.rows.iter().enumerate() {
        if hidden.contains(&number) {
            if number == hidden.start {
                let _ = writeln!(text, "{:>LABEL$}", format!("{} more", hidden.len()));
            }
            continue;
        }
        let line = paint(columns(maps, row, cells), colour);
        let (label, sent) = (
            format!("{}  ", label(row, number + 1 == count)),
            size(whole(maps, row).all_sent()).to_string(),
        );
        let _ = writeln!(text, "{label:>LABEL$}{line} {sent:>10}");
    }
    text + &legend(&maps.rows, colour)
}

/// The fates that occur, each with its letter or colour.
fn legend(rows: &[RoundMap], colour: bool) -> String {
    let all = rows
        .iter()
        .map(RoundMap::sum)
        .reduce(|sum, row| sum.plus(row))
        .map(|sum| Column::new(sum, sum.sent + sum.zero + sum.skipped + sum.holes));
    let occurs = |fate: &Fate| {
        *fate == Fate::Rest || all.as_ref().is_some_and(|column| column.pages(*fate) > 0)
    };
    let names = Fate::ALL.into_iter().filter(occurs).map(|fate| {
        let (few, most) = letters(fate);
        match (colour, few == most) {
            (true, _) => format!(
                "\x1b[38;5;{}m\u{2588}\x1b[0m {}",
                shade(fate, true),
                fate.name()
            ),
            (false, true) => format!("{most} {}", fate.name()),
            (false, false) => format!("{most}{few} {}", fate.name()),
        }
    });
    let names: Vec<String> = names.collect();
    let mut text = String::new();
    for line in names.chunks(4) {
        let _ = writeln!(text, "{:LABEL$}{}", "", line.join("   "));
    }
    text
}

/// One character for each column. An escape sequence is written only where the colour changes.
fn paint(columns: Vec<Column>, colour: bool) -> String {
    let mut text = String::new();
    let mut before = None;
    for column in columns {
        let Some((fate, most)) = shown(&column) else {
            text.push(' ');
            continue;
        };
        if !colour {
            let (few, many) = letters(fate);
            text.push(if most { many } else { few });
            continue;
        }
        let now = shade(fate, most);
        if before.replace(now) != Some(now) {
            let _ = write!(text, "\x1b[38;5;{now}m");
        }
        text.push('\u{2588}');
    }
    if before.is_some() {
        text += "\x1b[0m";
    }
    text
}

/// The fate that a column shows, and whether half of the column's pages or more have it; `None` for a column without
/// memory. Pages that the round handled go before pages that it had nothing to do with.
fn shown(column: &Column) -> Option<(Fate, bool)> {
    let memory = column.memory();
    let works = Fate::ALL.into_iter().filter(|fate| *fate != Fate::Rest);
    let fate = works
        .max_by_key(|fate| column.pages(*fate))
        .filter(|fate| column.pages(*fate) > 0)
        .unwrap_or(Fate::Rest);
    (memory > 0).then(|| (fate, column.pages(fate) * 2 >= memory))
}

/// The letter for a column that has less than half of its pages with `fate`, and the letter for half or more.
fn letters(fate: Fate) -> (char, char) {
    match fate {
        Fate::Sent => ('s', 'S'),
        Fate::Again => ('a', 'A'),
        Fate::Vain => ('v', 'V'),
        Fate::Skipped => ('f', 'F'),
        Fate::Empty => ('0', '0'),
        Fate::Rest => ('.', '.'),
    }
}

/// The same as a colour of the palette of 256 colours.
fn shade(fate: Fate, most: bool) -> u8 {
    let (few, many) = match fate {
        Fate::Sent => (25, 33),
        Fate::Again => (61, 105),
        Fate::Vain => (130, 208),
        Fate::Skipped => (28, 35),
        Fate::Empty => (244, 248),
        Fate::Rest => (238, 238),
    };
    if most { many } else { few }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{maps, record};
    use super::*;
    use crate::control::HintMode;

    #[test]
    fn without_colours_a_line_a_round_in_letters() {
        let records = [
            record(HintMode::Off, Some(maps())),
            record(HintMode::On, Some(maps())),
        ];
        let expected = "\
hints on: guest memory in each round, 256 KiB per character, and how much was sent
         1  SF 0    256 KiB
2, stopped  a. .   32.0 KiB
            Ss sent   Aa sent again   Vv sent in vain   Ff free, skipped
            0 zero or never touched   . not to be sent in this round
";
        assert_eq!(draw(&records, 80, false), expected);
        assert!(draw(&records, 80, false).is_ascii());
        assert_eq!(draw(&[record(HintMode::On, None)], 80, false), "");
    }

    #[test]
    fn colours_are_set_where_they_change_and_taken_back() {
        let text = draw(&[record(HintMode::On, Some(maps()))], 80, true);
        let first = text.lines().nth(1).unwrap();
        assert!(
            first.contains(
                "\x1b[38;5;33m\u{2588}\x1b[38;5;35m\u{2588} \x1b[38;5;248m\u{2588}\x1b[0m"
            ),
            "{first:?}"
        );
        for line in text.lines() {
            let last = line.rfind("\x1b[").map(|at| &line[at..]);
            assert!(last.is_none_or(|escape| escape.starts_with("\x1b[0m")));
        }
    }

    #[test]
    fn many_rounds_are_cut_short_but_not_the_last() {
        let mut maps = maps();
        let second = maps.rows[1].clone();
        maps.rows.extend((3..=40).map(|round| {
            let mut row = second.clone();
            (row.first_round, row.last_round) = (round, round);
            row
        }));
        let text = draw(&[record(HintMode::On, Some(maps))], 80, false);
        assert_eq!(text.lines().count(), 1 + MAX_LINES + 1 + 2);
        assert!(text.contains("24 more\n"), "{text}");
        assert!(text.contains("40, stopped"), "{text}");
    }

    #[test]
    fn a_narrow_terminal_gets_short_lines() {
        let mut wide = maps();
        wide.memory = wide.memory.repeat(100);
        for row in &mut wide.rows {
            row.cells = row.cells.repeat(100);
        }
        let text = draw(&[record(HintMode::On, Some(wide))], 60, false);
        assert!(
            text.lines().skip(1).take(2).all(|line| line.len() <= 60),
            "{text}"
        );
    }
}
