// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The arms as bars in an SVG file, which has a dark mode: a bar is the median rate, a dot is one run.

use std::fmt::Write;

use super::record::{ArmRecord, Report};
use crate::size::Size;

/// Points of the picture.
const WIDTH: usize = 760;
const EDGE: usize = 20;
/// Where bars begin, and how long the longest is.
const LEFT: usize = 190;
const BAR_WIDTH: f64 = 380.0;
/// Space above the bars, height of a bar, and distance from one to the next.
const TOP: usize = 72;
const BAR_HEIGHT: usize = 18;
const PITCH: usize = 30;

/// Colours that colour-blind people can tell apart (Okabe and Ito), on light and on dark.
const STYLE: &str = "\
svg{color-scheme:light dark;background:#fff}\
text{fill:#1f2328;font:12px system-ui,sans-serif}\
.title{font-size:16px;font-weight:600}.dim{fill:#656d76;font-size:11px}\
.paper{fill:#fff}.ours{fill:#0072b2}.other{fill:#c4ccd4}.run{fill:#e06c00}\
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.dim{fill:#9198a1}\
.paper{fill:#0d1117}.ours{fill:#4aa3e0}.other{fill:#4d5560}.run{fill:#f58b2e}}";

/// Draws the arms that ran.
pub(super) fn draw(report: &Report) -> String {
    let arms: Vec<_> = (report.arms.iter())
        .filter(|arm| !arm.samples.is_empty())
        .collect();
    let rates = arms.iter().flat_map(|arm| &arm.samples);
    let fastest = rates
        .map(|sample| sample.gb_per_s)
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + arms.len() * PITCH + EDGE;
    // Writing to a String does not fail.
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"{EDGE}\" y=\"{}\">How fast memory moves on this machine</text>\n\
         <text class=\"dim\" x=\"{EDGE}\" y=\"{}\">{} of {} memory, connections: {}. A bar is the median, a dot is one of \
         {} runs. {} processors, Linux {}.</text>",
        EDGE + 10,
        EDGE + 30,
        Size(report.size_bytes),
        report.content,
        report.channels,
        report.runs,
        report.machine.processors,
        report.machine.kernel
    );
    for (number, arm) in arms.into_iter().enumerate() {
        bar(&mut svg, report, arm, TOP + number * PITCH, fastest);
    }
    svg + "</svg>\n"
}

/// One arm: its name, its bar, its runs, its rate and its ratios.
fn bar(svg: &mut String, report: &Report, arm: &ArmRecord, y: usize, fastest: f64) {
    let at = |rate: f64| rate / fastest * BAR_WIDTH;
    let median = arm.median_gb_per_s.unwrap_or(0.0);
    let name = arm.arm.name();
    let class = if name.starts_with("lacuna") {
        "ours"
    } else {
        "other"
    };
    let ratios: Vec<String> = (report.ratios.iter())
        .filter(|ratio| ratio.arm == arm.arm)
        .map(|ratio| format!("{:.2} of {}", ratio.median, ratio.baseline))
        .collect();
    let (middle, baseline) = (y + BAR_HEIGHT / 2, y + BAR_HEIGHT / 2 + 4);
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{name}</text>\
         <rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\"/>",
        LEFT - 10,
        at(median)
    );
    for sample in &arm.samples {
        let x = LEFT as f64 + at(sample.gb_per_s);
        let _ = write!(
            svg,
            "<circle class=\"run\" cx=\"{x:.1}\" cy=\"{middle}\" r=\"2.5\"/>"
        );
    }
    let right = LEFT + BAR_WIDTH as usize + 12;
    let _ = writeln!(
        svg,
        "<text x=\"{right}\" y=\"{}\">{median:.2} GB/s</text>\
         <text class=\"dim\" x=\"{right}\" y=\"{}\">{}</text>",
        y + 6,
        y + 19,
        ratios.join(", ")
    );
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::super::record::tests::report;
    use super::*;
    use crate::args::ArmName;

    #[test]
    fn every_arm_that_ran_has_a_bar_and_every_run_a_dot() {
        let svg = draw(&report(&[
            (ArmName::BareFresh, &[1.0, 2.0, 4.0]),
            (ArmName::Iperf3, &[]),
            (ArmName::LacunaFresh, &[0.5, 2.0, 1.0]),
        ]));
        let document = Document::parse(&svg).unwrap();
        let of_class = |class: &str| {
            let nodes = document.descendants();
            nodes
                .filter(|node| node.attribute("class") == Some(class))
                .count()
        };
        assert_eq!(
            (of_class("ours"), of_class("other"), of_class("run")),
            (1, 1, 6)
        );
        assert!(svg.contains("0.50 of bare-fresh"), "{svg}");
    }

    #[test]
    fn a_picture_of_nothing_is_well_formed() {
        Document::parse(&draw(&report(&[]))).unwrap();
    }
}
