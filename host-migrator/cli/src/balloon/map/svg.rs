// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The picture as an SVG file, with a legend and the numbers.

use std::fmt::Write;

use spec::{PAGE_SHIFT, PAGE_SIZE};

use super::layers::{Layers, Share};
use super::picture::{Picture, Row};
use crate::size::Size;

/// Width and height of a cell, in points.
const CELL: usize = 7;
const LINE: usize = 12;
/// Margins in points: left of the cells, for addresses, and around the picture.
const MARGIN: usize = 110;
const EDGE: usize = 16;

/// Colours as red, green and blue.
type Colour = [u8; 3];
const IN_USE: Colour = [0x4a, 0x4e, 0x57];
const FREE: Colour = [0x3f, 0xb9, 0x50];
const BALLOONED: Colour = [0x38, 0x8b, 0xfd];

/// Draws `picture`, which was made from `layers`.
pub fn draw(layers: &Layers<'_>, picture: &Picture) -> String {
    let cells = |row: &Row| match row {
        Row::Memory { cells, .. } => cells.len(),
        Row::Hole(_) => 0,
    };
    let widest = picture.rows.iter().map(cells).max().unwrap_or(0).max(80);
    let width = EDGE * 2 + MARGIN + widest * CELL;
    let top = EDGE + 4 * 18;
    let height = top + picture.rows.len() * LINE + EDGE;
    // Writing to a String does not fail.
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"10\" fill=\"#1f2328\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    legend(&mut svg, layers, picture);
    for (number, row) in picture.rows.iter().enumerate() {
        let y = top + number * LINE;
        let baseline = y + LINE - 3;
        match row {
            Row::Memory { first, cells } => {
                let address = first << PAGE_SHIFT;
                let x = EDGE + MARGIN - 8;
                let _ = writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{baseline}\" text-anchor=\"end\">{address:#x}</text>"
                );
                draw_cells(&mut svg, cells, y);
            }
            Row::Hole(hole) => {
                let (x, size) = (EDGE + MARGIN, Size(hole.bytes()));
                let _ = writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{baseline}\" fill=\"#8c959f\" font-style=\"italic\">\
                     {size} without memory</text>"
                );
            }
        }
    }
    svg + "</svg>\n"
}

/// What was drawn, what the colours mean, and how much there is of each.
fn legend(svg: &mut String, layers: &Layers<'_>, picture: &Picture) {
    let all = layers
        .regions()
        .iter()
        .map(|region| layers.share(*region))
        .fold(Share::default(), |sum, share| Share {
            pages: sum.pages + share.pages,
            free: sum.free + share.free,
            ballooned: sum.ballooned + share.ballooned,
        });
    let memory = Size(all.pages * PAGE_SIZE);
    let cell = Size(picture.cell_pages * PAGE_SIZE);
    let y = EDGE + 12;
    let _ = writeln!(
        svg,
        "<text x=\"{EDGE}\" y=\"{y}\" font-size=\"13\" font-weight=\"bold\">\
         Guest memory: {memory}, a cell is {cell}</text>"
    );
    let unknown = |known: bool| if known { "" } else { " (not asked for)" };
    let kinds = [
        (IN_USE, "in use", all.pages - all.free - all.ballooned, true),
        (FREE, "free", all.free, layers.free().is_some()),
        (BALLOONED, "in the balloon", all.ballooned, true),
    ];
    let y = y + 14;
    for (number, (colour, name, pages, known)) in kinds.into_iter().enumerate() {
        let (x, size) = (EDGE + number * 210, Size(pages * PAGE_SIZE));
        let (text, baseline) = (x + 18, y + 10);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{text}\" y=\"{baseline}\">{name}: {size}{}</text>",
            hex(colour),
            unknown(known)
        );
    }
    let y = y + 28;
    let _ = writeln!(
        svg,
        "<text x=\"{EDGE}\" y=\"{y}\" fill=\"#8c959f\">\
         Mixed cells have mixed colours. Addresses are guest-physical.</text>"
    );
}

/// One rectangle for each stretch of cells of one colour.
fn draw_cells(svg: &mut String, cells: &[Share], y: usize) {
    let mut column = 0;
    for stretch in cells.chunk_by(|left, right| colour_of(left) == colour_of(right)) {
        let (x, width) = (EDGE + MARGIN + column * CELL, stretch.len() * CELL);
        let (height, colour) = (LINE - 2, hex(colour_of(&stretch[0])));
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{colour}\"/>"
        );
        column += stretch.len();
    }
}

/// The colours of a cell's pages, mixed by their numbers.
fn colour_of(cell: &Share) -> Colour {
    let pages = cell.pages.max(1);
    let in_use = pages.saturating_sub(cell.free + cell.ballooned);
    std::array::from_fn(|part| {
        let sum = u64::from(IN_USE[part]) * in_use
            + u64::from(FREE[part]) * cell.free
            + u64::from(BALLOONED[part]) * cell.ballooned;
        u8::try_from(sum / pages).unwrap_or(u8::MAX)
    })
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

#[cfg(test)]
mod tests {
    use super::super::layers::tests::{range, with_layers};
    use super::*;

    #[test]
    fn each_stretch_of_one_colour_is_one_rectangle_and_holes_are_named() {
        let memory = [range(0, 8), range(16, 4)];
        let svg = with_layers(&memory, &[range(2, 4)], &[range(16, 1)], |layers| {
            draw(layers, &Picture::new(layers, 8, 12))
        });
        let cells: Vec<&str> = svg
            .lines()
            .filter(|line| line.contains("height=\"10\""))
            .collect();
        let fill = |line: &&str| line.split("fill=\"").nth(1).unwrap()[..7].to_owned();
        let fills: Vec<String> = cells.iter().map(fill).collect();
        assert_eq!(
            fills,
            ["#4a4e57", "#3fb950", "#4a4e57", "#388bfd", "#4a4e57"]
        );
        assert!(
            cells[1].contains("x=\"140\"") && cells[1].contains("width=\"28\""),
            "{}",
            cells[1]
        );
        assert!(svg.contains("32.0 KiB without memory"));
        assert!(svg.contains("free: 16.0 KiB<"));
        assert!(svg.contains(">0x10000<"));
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }

    #[test]
    fn a_cell_half_free_has_half_the_colour() {
        let half = Share {
            pages: 2,
            free: 1,
            ballooned: 0,
        };
        assert_eq!(colour_of(&half), [0x44, 0x83, 0x53]);
    }
}
