// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The picture for a terminal: half blocks in colours, or shades without colours.

use std::fmt::Write;

use spec::{PAGE_SHIFT, PAGE_SIZE};

use super::layers::Share;
use super::picture::{Picture, Row};
use crate::size::Size;

/// Columns of a row's address and the space after it.
const MARGIN: usize = 14;
/// Shades of green and blue in the palette of 256 colours, from few pages of a cell to all of them.
const FREE: [u8; 4] = [22, 28, 34, 40];
const BALLOONED: [u8; 4] = [18, 19, 20, 27];
const IN_USE: u8 = 238;

/// Cells that fit a row of a terminal with `width` columns. With colours a column holds two.
pub fn cells_in(width: usize, colour: bool) -> usize {
    let columns = width.saturating_sub(MARGIN).max(8);
    if colour { columns * 2 } else { columns }
}

/// The picture and its legend.
pub fn draw(picture: &Picture, colour: bool) -> String {
    let mut text = String::new();
    for row in &picture.rows {
        // Writing to a String does not fail.
        let _ = match row {
            Row::Hole(hole) => {
                let gap = "";
                writeln!(
                    text,
                    "{gap:>MARGIN$}({} without memory)",
                    Size(hole.bytes())
                )
            }
            Row::Memory { first, cells } => {
                let line = if colour {
                    coloured(cells)
                } else {
                    shaded(cells)
                };
                let address = format!("{:#x}", first << PAGE_SHIFT);
                writeln!(text, "{address:>12}  {line}")
            }
        };
    }
    let cell = Size(picture.cell_pages * PAGE_SIZE);
    let gap = "";
    let _ = if colour {
        let sample = |shades: &[u8]| -> String {
            shades
                .iter()
                .map(|shade| format!("\x1b[38;5;{shade}m\u{2588}"))
                .collect()
        };
        writeln!(
            text,
            "{gap:>MARGIN$}{}\x1b[0m in use  {}\x1b[0m free  {}\x1b[0m in the balloon  \
             (a half block is {cell})",
            sample(&[IN_USE]),
            sample(&FREE),
            sample(&BALLOONED)
        )
    } else {
        writeln!(
            text,
            "{gap:>MARGIN$}. in use  \u{2591}\u{2592}\u{2593}\u{2588} free  bB in the balloon  \
             (a character is {cell})"
        )
    };
    text
}

/// Two cells in each column: the left one is the foreground of a left half block, the right one its background. An
/// escape sequence is written only where a colour changes.
fn coloured(cells: &[Share]) -> String {
    let mut text = String::new();
    let mut before = None;
    for pair in cells.chunks(2) {
        let colours = (colour_of(pair[0]), pair.get(1).map(|cell| colour_of(*cell)));
        if before.replace(colours) != Some(colours) {
            let _ = match colours {
                (left, Some(right)) => write!(text, "\x1b[38;5;{left};48;5;{right}m"),
                (left, None) => write!(text, "\x1b[0;38;5;{left}m"),
            };
        }
        text.push('\u{258c}');
    }
    text + "\x1b[0m"
}

fn colour_of(cell: Share) -> u8 {
    match kind(cell) {
        Kind::InUse => IN_USE,
        Kind::Free(quarter) => FREE[quarter],
        Kind::Ballooned(quarter) => BALLOONED[quarter],
    }
}

fn shaded(cells: &[Share]) -> String {
    cells
        .iter()
        .map(|cell| match kind(*cell) {
            Kind::InUse => '.',
            Kind::Free(quarter) => ['\u{2591}', '\u{2592}', '\u{2593}', '\u{2588}'][quarter],
            Kind::Ballooned(0 | 1) => 'b',
            Kind::Ballooned(_) => 'B',
        })
        .collect()
}

/// The commoner kind among a cell's pages that are not in use. Its shade says how much of the cell these pages are:
/// less than a half, less than three quarters, less than all, all.
enum Kind {
    InUse,
    Free(usize),
    Ballooned(usize),
}

fn kind(cell: Share) -> Kind {
    let quarter = |pages: u64| match pages * 4 / cell.pages.max(1) {
        0 | 1 => 0,
        2 => 1,
        3 => 2,
        _ => 3,
    };
    if cell.free + cell.ballooned == 0 {
        Kind::InUse
    } else if cell.free > cell.ballooned {
        Kind::Free(quarter(cell.free))
    } else {
        Kind::Ballooned(quarter(cell.ballooned))
    }
}

#[cfg(test)]
mod tests {
    use super::super::layers::tests::{range, with_layers};
    use super::*;

    fn small() -> Picture {
        let memory = [range(0, 40), range(64, 8)];
        let hinted = [
            range(4, 4),
            range(8, 3),
            range(12, 2),
            range(16, 1),
            range(24, 8),
        ];
        let ballooned = [range(32, 4), range(36, 1), range(64, 4)];
        with_layers(&memory, &hinted, &ballooned, |layers| {
            Picture::new(layers, 8, 12)
        })
    }

    #[test]
    fn without_colours_shades_show_how_much_of_a_cell_is_free() {
        let picture = small();
        assert_eq!(picture.cell_pages, 4);
        let expected = "\
\u{20}        0x0  .\u{2588}\u{2593}\u{2592}\u{2591}.\u{2588}\u{2588}
\u{20}    0x20000  Bb
\u{20}             (96.0 KiB without memory)
\u{20}    0x40000  B.
\u{20}             . in use  \u{2591}\u{2592}\u{2593}\u{2588} free  bB in the balloon  (a character is 16.0 KiB)
";
        assert_eq!(draw(&picture, false), expected);
    }

    #[test]
    fn with_colours_a_column_holds_two_cells() {
        let text = draw(&small(), true);
        let first = text.lines().next().unwrap();
        let (in_use, all) = ("238", "40");
        assert_eq!(
            first.trim_start(),
            format!(
                "0x0  \x1b[38;5;{in_use};48;5;{all}m\u{258c}\x1b[38;5;34;48;5;28m\u{258c}\
                 \x1b[38;5;22;48;5;{in_use}m\u{258c}\x1b[38;5;{all};48;5;{all}m\u{258c}\x1b[0m"
            )
        );
        assert_eq!(cells_in(80, true), 132);
        assert_eq!(cells_in(80, false), 66);
        assert_eq!(cells_in(0, false), 8);
    }
}
