// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bars in groups, as SVG: a bar is a median, a line the least and the most.

use std::fmt::Write;

use super::super::record::Spread;
use super::html::escaped;

/// Points of the picture.
const WIDTH: f64 = 560.0;
/// Where bars begin, and how long the longest is.
const LEFT: f64 = 150.0;
const LONGEST: f64 = 320.0;
/// The longest name of a group.
const NAME: usize = 17;
/// Height of a bar, and space above each group.
const BAR: f64 = 14.0;
const GAP: f64 = 8.0;
const TOP: f64 = 26.0;

/// Bars in groups.
pub(super) struct Bars {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) groups: Vec<(String, Vec<Bar>)>,
}

/// A bar.
pub(super) struct Bar {
    pub(super) class: &'static str,
    pub(super) name: String,
    pub(super) spread: Spread,
}

impl Bars {
    /// The picture.
    pub(super) fn draw(&self) -> String {
        let bars = || self.groups.iter().flat_map(|(_, bars)| bars);
        let most = bars().map(|bar| bar.spread.most).fold(0.0, f64::max);
        let scale = LONGEST / if most > 0.0 { most } else { 1.0 };
        let rows = bars().count() as f64 * BAR + self.groups.len() as f64 * GAP;
        let height = TOP + rows + GAP;
        let says = bars_in_words(&self.groups, self.unit);
        let mut svg = format!(
            "<svg role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" aria-label=\"{}. {}\">\n",
            escaped(self.title),
            escaped(&says)
        );
        self.legend(&mut svg);
        let mut y = TOP;
        for (name, bars) in &self.groups {
            y += GAP;
            let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
            // Writing to a String does not fail.
            let _ = writeln!(
                svg,
                "<text class=\"right\" x=\"{}\" y=\"{middle}\">{}</text>",
                LEFT - 8.0,
                escaped(&shortened(name))
            );
            for bar in bars {
                let Spread {
                    least,
                    median,
                    most,
                } = bar.spread;
                let (long, from, to) = (median * scale, least * scale, most * scale);
                let middle = y + BAR / 2.0;
                let _ = writeln!(
                    svg,
                    "<rect class=\"bar {}\" x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>\
                     <line class=\"spread\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{}</text>",
                    bar.class,
                    y + 1.0,
                    long.max(1.0),
                    BAR - 2.0,
                    LEFT + from,
                    LEFT + to,
                    LEFT + to.max(long) + 6.0,
                    middle + 4.0,
                    in_words(median, self.unit)
                );
                y += BAR;
            }
        }
        svg + "</svg>\n"
    }

    /// What the colours mean.
    fn legend(&self, svg: &mut String) {
        let mut names: Vec<(&str, &str)> = Vec::new();
        for bar in self.groups.iter().flat_map(|(_, bars)| bars) {
            if !names.contains(&(bar.class, bar.name.as_str())) {
                names.push((bar.class, &bar.name));
            }
        }
        let mut at = LEFT;
        for (class, name) in names {
            let _ = writeln!(
                svg,
                "<rect class=\"bar {class}\" x=\"{at}\" y=\"4\" width=\"12\" height=\"12\"/><text x=\"{}\" y=\"14\">{}</text>",
                at + 17.0,
                escaped(name)
            );
            at += 36.0 + 7.6 * name.chars().count() as f64;
        }
    }
}

/// A name for which there is room. The whole one is in the page's tables.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn in_words(value: f64, unit: &str) -> String {
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

/// All bars, for those who cannot see them.
fn bars_in_words(groups: &[(String, Vec<Bar>)], unit: &str) -> String {
    let group = |(name, bars): &(String, Vec<Bar>)| {
        let bar = |bar: &Bar| format!("{} {}", bar.name, in_words(bar.spread.median, unit));
        let bars: Vec<String> = bars.iter().map(bar).collect();
        format!("{name}: {}", bars.join(", "))
    };
    let groups: Vec<String> = groups.iter().map(group).collect();
    groups.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_the_greatest_median_and_all_are_told() {
        let bar = |class, median| Bar {
            class,
            name: format!("hints {class}"),
            spread: Spread {
                least: median / 2.0,
                median,
                most: median,
            },
        };
        let bars = Bars {
            title: "Total time",
            unit: "s",
            groups: vec![
                ("one".into(), vec![bar("off", 4.0), bar("on", 1.0)]),
                ("two".into(), vec![bar("off", 0.0)]),
            ],
        };
        let svg = bars.draw();
        assert!(svg.contains(&format!("width=\"{LONGEST:.1}\"")), "{svg}");
        assert!(svg.contains("one: hints off 4.00 s, hints on 1.00 s; two: hints off 0.00 s"));
        assert_eq!(svg.matches(">hints off<").count(), 1, "one legend: {svg}");
    }
}
