// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pictures of all modes in one SVG file, which has a dark mode.
//!
//! A row is a round. A column of a row is a range of guest-physical memory, filled from the bottom by what the round
//! did with its pages. Even a single page is drawn at least one line high.

use std::fmt::Write;

use host_migrator::RoundMaps;
use host_migrator::report::round_map::RoundMap;

use super::{Column, Fate, cells_a_column, column_bytes, columns, first_runs, label, size, whole};
use crate::compare::Record;
use crate::size::Size;

/// The most columns of a row.
const COLUMNS: usize = 256;
/// Points of the picture.
const WIDTH: usize = 980;
const EDGE: usize = 20;
/// Where rows begin, and how wide they are.
const LEFT: usize = 112;
const ROW_WIDTH: usize = 768;
/// Height of a row, and distance from one row to the next.
const ROW_HEIGHT: u64 = 26;
const PITCH: usize = 32;
/// Space above the first mode, and above and below the rows of each mode.
const TITLE: usize = 84;
const HEADING: usize = 34;
const AXIS: usize = 30;

/// Colours that colour-blind people can tell apart (Okabe and Ito), on light and on dark.
const STYLE: &str = "\
svg{color-scheme:light dark;background:#fff}\
text{fill:#1f2328;font:11px system-ui,sans-serif}\
.title{font-size:16px;font-weight:600}.mode{font-size:13px;font-weight:600}.dim{fill:#656d76}\
.paper{fill:#fff}.rest{fill:#eaeef2}.empty{fill:#c4ccd4}.skipped{fill:#2fae7f}.sent{fill:#0072b2}\
.again{fill:#7a5fc0}.vain{fill:#e06c00}.tick{stroke:#8c959f}\
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.dim{fill:#9198a1}\
.paper{fill:#0d1117}.rest{fill:#21262d}.empty{fill:#4d5560}.skipped{fill:#2fae7f}.sent{fill:#4aa3e0}\
.again{fill:#a58be6}.vain{fill:#f58b2e}.tick{stroke:#656d76}}";

/// Draws the first run of each mode that has maps.
pub fn draw(records: &[Record]) -> String {
    let runs = first_runs(records);
    let rows: usize = runs.iter().map(|(_, maps)| maps.rows.len()).sum();
    let height = TITLE + runs.len() * (HEADING + AXIS) + rows * PITCH + EDGE;
    // Writing to a String does not fail.
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>"
    );
    title(&mut svg, &runs);
    let mut top = TITLE;
    for (record, maps) in runs {
        mode(&mut svg, record, maps, top);
        top += HEADING + maps.rows.len() * PITCH + AXIS;
    }
    svg + "</svg>\n"
}

/// What was migrated, and what the colours mean.
fn title(svg: &mut String, runs: &[(&Record, &RoundMaps)]) {
    let guest = runs.first().map(|(run, maps)| {
        format!(
            "{} guest with {} of memory, {} in use when its migration begins. A column is {} of guest-physical memory.",
            run.guest,
            Size(run.memory_bytes),
            Size(run.in_use_bytes),
            Size(column_bytes(maps, cells_a_column(maps, COLUMNS)))
        )
    });
    let _ = writeln!(
        svg,
        "<text class=\"title\" x=\"{EDGE}\" y=\"{}\">What each round did with guest memory</text>\n\
         <text class=\"dim\" x=\"{EDGE}\" y=\"{}\">{}</text>",
        EDGE + 10,
        EDGE + 30,
        guest.unwrap_or_default()
    );
    let (mut x, y) = (EDGE, EDGE + 42);
    for fate in Fate::ALL {
        let (text, baseline, name) = (x + 17, y + 10, fate.name());
        let _ = writeln!(
            svg,
            "<rect class=\"{}\" x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\"/>\
             <text x=\"{text}\" y=\"{baseline}\">{name}</text>",
            class(fate)
        );
        x = text + name.len() * 6 + 24;
    }
}

/// A run: what it cost, its rounds, and the addresses below them.
fn mode(svg: &mut String, record: &Record, maps: &RoundMaps, top: usize) {
    let (baseline, end) = (top + HEADING - 10, LEFT + ROW_WIDTH);
    let _ = writeln!(
        svg,
        "<text class=\"mode\" x=\"{EDGE}\" y=\"{baseline}\">hints {}</text>\
         <text class=\"dim\" x=\"{LEFT}\" y=\"{baseline}\">{} on the wire, {:.2} times what is in use; \
         {:.0} ms, of which the guest was stopped for {:.1} ms</text>\
         <text class=\"dim\" x=\"{}\" y=\"{baseline}\">sent</text>",
        record.hints,
        Size(record.wire_bytes),
        record.wire_per_in_use(),
        record.total_ms,
        record.downtime_ms,
        end + 10
    );
    let mut y = top + HEADING;
    for (number, row) in maps.rows.iter().enumerate() {
        let name = label(row, number + 1 == maps.rows.len());
        round(svg, maps, row, &name, y);
        y += PITCH;
    }
    axis(svg, maps, y - (PITCH - ROW_HEIGHT as usize));
}

/// A row: its name, its columns, and how much was sent.
fn round(svg: &mut String, maps: &RoundMaps, row: &RoundMap, name: &str, y: usize) {
    let columns = columns(maps, row, cells_a_column(maps, COLUMNS));
    let all = whole(maps, row);
    let baseline = y + ROW_HEIGHT as usize / 2 + 4;
    let told: Vec<String> = Fate::ALL
        .into_iter()
        .filter(|fate| all.pages(*fate) > 0)
        .map(|fate| format!("{} {}", size(all.pages(fate)), fate.name()))
        .collect();
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{name}</text>\
         <text x=\"{}\" y=\"{baseline}\">{}</text>\n\
         <g class=\"round\" transform=\"translate({LEFT} {y}) scale({:.4} 1)\" shape-rendering=\"crispEdges\">\
         <title>round {name}: {}</title>",
        LEFT - 10,
        LEFT + ROW_WIDTH + 10,
        size(all.all_sent()),
        ROW_WIDTH as f64 / columns.len().max(1) as f64,
        told.join(", ")
    );
    let levels: Vec<Levels> = columns.iter().map(levels).collect();
    for fate in Fate::ALL {
        let path = path(&levels, fate);
        if !path.is_empty() {
            let _ = writeln!(svg, "<path class=\"{}\" d=\"{path}\"/>", class(fate));
        }
    }
    svg.push_str("</g>\n");
}

/// How many lines of a column each of [`Fate::ALL`] takes.
type Levels = [u64; Fate::ALL.len()];

/// Fills a column of [`ROW_HEIGHT`] lines; one without memory stays empty.
fn levels(column: &Column) -> Levels {
    let memory = column.memory();
    let mut levels = Fate::ALL.map(|fate| match column.pages(fate) {
        0 => 0,
        pages => (pages * ROW_HEIGHT / memory).max(1),
    });
    if memory == 0 {
        return levels;
    }
    // The largest part takes the error of rounding.
    if let Some(largest) = (0..levels.len()).max_by_key(|fate| levels[*fate]) {
        let others = levels.iter().sum::<u64>() - levels[largest];
        levels[largest] = ROW_HEIGHT - others;
    }
    levels
}

/// The parts of all columns with `fate`. Neighbours of the same height are one rectangle.
fn path(levels: &[Levels], fate: Fate) -> String {
    let extent = |column: &Levels| {
        let below: u64 = column[..fate as usize].iter().sum();
        (below, column[fate as usize])
    };
    let mut path = String::new();
    let mut x = 0;
    for run in levels.chunk_by(|left, right| extent(left) == extent(right)) {
        let (below, height) = extent(&run[0]);
        let width = run.len();
        if height > 0 {
            let y = ROW_HEIGHT - below - height;
            let _ = write!(path, "M{x} {y}h{width}v{height}h-{width}z");
        }
        x += width;
    }
    path
}

/// Addresses below the rows, which end at `y`.
fn axis(svg: &mut String, maps: &RoundMaps, y: usize) {
    let bytes = column_bytes(maps, maps.memory.len());
    let step = (bytes / 8).next_power_of_two();
    for address in (0..=bytes).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let x = LEFT as f64 + address as f64 / bytes as f64 * ROW_WIDTH as f64;
        let _ = writeln!(
            svg,
            "<path class=\"tick\" d=\"M{x:.1} {}v5\"/>\
             <text class=\"dim\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            y + 2,
            y + 18,
            address_name(address)
        );
    }
}

/// An address of few digits, in the largest unit of which it is a multiple.
fn address_name(address: u64) -> String {
    match [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| address.is_multiple_of(1 << shift))
    {
        _ if address == 0 => "0".into(),
        Some((shift, unit)) => format!("{} {unit}", address >> shift),
        None => format!("{address:#x}"),
    }
}

fn class(fate: Fate) -> &'static str {
    match fate {
        Fate::Sent => "sent",
        Fate::Again => "again",
        Fate::Vain => "vain",
        Fate::Skipped => "skipped",
        Fate::Empty => "empty",
        Fate::Rest => "rest",
    }
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::super::tests::{maps, record};
    use super::*;
    use crate::control::HintMode;

    #[test]
    fn the_file_is_well_formed_and_has_a_row_for_each_round_of_each_mode() {
        let svg = draw(&[
            record(HintMode::Off, Some(maps())),
            record(HintMode::Holes, None),
            record(HintMode::On, Some(maps())),
        ]);
        let document = Document::parse(&svg).unwrap();
        let of_class = |class: &str| {
            let nodes = document.descendants();
            nodes
                .filter(|node| node.attribute("class") == Some(class))
                .count()
        };
        assert_eq!((of_class("mode"), of_class("round")), (2, 4));
        let titles: Vec<_> = document
            .descendants()
            .filter(|node| node.has_tag_name("title"))
            .filter_map(|node| node.text())
            .collect();
        assert_eq!(
            titles[0],
            "round 1: 192 KiB sent, 64.0 KiB sent in vain, 240 KiB free, skipped, \
             144 KiB zero or never touched"
        );
        assert!(svg.contains(">256 KiB</text>"), "{svg}");
        Document::parse(&draw(&[])).unwrap();
    }

    #[test]
    fn a_column_is_filled_to_its_height_and_a_single_page_is_seen() {
        let maps = maps();
        let first = columns(&maps, &maps.rows[0], 1);
        assert_eq!(levels(&first[0]), [20, 0, 6, 0, 0, 0]);
        assert_eq!(levels(&first[1]), [0, 0, 0, 25, 1, 0]);
        assert_eq!(levels(&first[2]), [0; 6]);
        let lonely = Column([1, 1, 1, 1, 1, 1_000_000]);
        assert_eq!(levels(&lonely), [1, 1, 1, 1, 1, 21]);
    }

    #[test]
    fn neighbours_of_the_same_height_are_one_rectangle() {
        let levels = [
            [26, 0, 0, 0, 0, 0],
            [26, 0, 0, 0, 0, 0],
            [6, 0, 0, 20, 0, 0],
            [0; 6],
        ];
        assert_eq!(path(&levels, Fate::Sent), "M0 0h2v26h-2zM2 20h1v6h-1z");
        assert_eq!(path(&levels, Fate::Skipped), "M2 0h1v20h-1z");
        assert_eq!(path(&levels, Fate::Vain), "");
    }

    #[test]
    fn addresses_are_short() {
        let names = [0, 256 << 20, 5 << 30, (1 << 30) + (512 << 20), 4096, 100].map(address_name);
        assert_eq!(
            names,
            ["0", "256 MiB", "5 GiB", "1536 MiB", "4 KiB", "0x64"]
        );
    }
}
