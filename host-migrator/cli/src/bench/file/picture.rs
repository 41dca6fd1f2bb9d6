// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rates over channels in an SVG file, which has a dark mode: a line for each way to save or restore, and dashed ones for dd.

use std::fmt::Write;

use super::record::{ArmRecord, Report};
use crate::control::DirectIoName;
use crate::size::Size;

/// Points of the picture.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// The corners of the plot.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 590.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 370.0;

/// Colours that colour-blind people can tell apart (Okabe and Ito), on light and on dark.
const STYLE: &str = "\
svg{color-scheme:light dark;background:#fff}\
text{fill:#1f2328;font:12px system-ui,sans-serif}\
.title{font-size:16px;font-weight:600}.dim{fill:#656d76;font-size:11px}\
.paper{fill:#fff}.axis{stroke:#c4ccd4;fill:none}\
.line{fill:none;stroke-width:2}.dash{fill:none;stroke-dasharray:5 4}\
.c0{stroke:#0072b2}.c1{stroke:#56b4e9}.c2{stroke:#d55e00}.c3{stroke:#e69f00}.c4{stroke:#009e73}.c5{stroke:#cc79a7}\
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.dim{fill:#9198a1}\
.paper{fill:#0d1117}.axis{stroke:#4d5560}}";

/// A line of the picture: its name, its class, and its points as channels and MB/s.
type Line<'a> = (&'a str, &'static str, Vec<(f64, f64)>);

/// Draws the arms that ran.
pub(super) fn draw(report: &Report) -> String {
    let points = |arm: &str, direct: bool| -> Vec<(f64, f64)> {
        let is_direct = |record: &ArmRecord| record.direct_io != Some(DirectIoName::Off);
        let of_line = report.arms.iter().filter(|record| record.arm == arm);
        of_line
            .filter(|record| is_direct(record) == direct)
            .filter_map(|record| Some((record.channels?.into(), record.median_mb_per_s?)))
            .collect()
    };
    let lines: [Line<'_>; 5] = [
        ("save, direct", "c0", points("save", true)),
        ("save, page cache", "c1", points("save", false)),
        ("restore, direct", "c2", points("restore", true)),
        ("restore, page cache", "c3", points("restore", false)),
        ("QEMU save, direct", "c4", points("qemu-save", true)),
    ];
    let best = |arm: &str| {
        let of_arm = report.arms.iter().filter(|record| record.arm == arm);
        let rates = of_arm.filter_map(|record| record.median_mb_per_s);
        rates.max_by(f64::total_cmp)
    };
    let dashes = [
        ("dd oflag=direct", "c0", best("dd-write")),
        ("dd iflag=direct", "c2", best("dd-read")),
    ];
    let all = lines.iter().flat_map(|(_, _, points)| points);
    let rates = all.clone().map(|point| point.1);
    let fastest = rates
        .chain(dashes.iter().filter_map(|dash| dash.2))
        .fold(1.0, f64::max);
    let most = all.map(|point| point.0).fold(1.0, f64::max);
    let y = |rate: f64| BOTTOM - rate / fastest * (BOTTOM - TOP);
    let x = |channels: f64| match most > 1.0 {
        true => LEFT + channels.log2() / most.log2() * (RIGHT - LEFT),
        false => LEFT,
    };
    let mut svg = frame(report, fastest);
    // Writing to a String does not fail.
    let mut channels: Vec<u16> = report.arms.iter().filter_map(|arm| arm.channels).collect();
    channels.sort_unstable();
    channels.dedup();
    for count in channels {
        let _ = writeln!(
            svg,
            "<text class=\"dim\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{count}</text>",
            x(count.into()),
            BOTTOM + 16.0
        );
    }
    let mut label = TOP + 6.0;
    let mut name = |svg: &mut String, class: &str, how: &str, name: &str| {
        let _ = writeln!(
            svg,
            "<path class=\"{how} {class}\" d=\"M{} {}h24\"/><text x=\"{}\" y=\"{label}\">{name}</text>",
            RIGHT + 14.0,
            label - 4.0,
            RIGHT + 44.0
        );
        label += 20.0;
    };
    for (text, class, points) in lines.iter().filter(|line| !line.2.is_empty()) {
        let path: Vec<String> = (points.iter())
            .map(|(channels, rate)| format!("{:.1} {:.1}", x(*channels), y(*rate)))
            .collect();
        let _ = writeln!(
            svg,
            "<path class=\"line {class}\" d=\"M{}\"/>",
            path.join("L")
        );
        name(&mut svg, class, "line", text);
    }
    for (text, class, rate) in dashes {
        if let Some(rate) = rate {
            let _ = writeln!(
                svg,
                "<path class=\"dash {class}\" d=\"M{LEFT} {:.1}H{RIGHT}\"/>",
                y(rate)
            );
            name(&mut svg, class, "dash", text);
        }
    }
    svg + "</svg>\n"
}

/// Title and axes.
fn frame(report: &Report, fastest: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n\
         <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
         <text class=\"title\" x=\"20\" y=\"30\">How fast memory goes into a file and back</text>\n\
         <text class=\"dim\" x=\"20\" y=\"50\">{} of {} memory; medians of {} runs. {} processors, Linux {}.</text>\n\
         <path class=\"axis\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>\n\
         <text class=\"dim\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{fastest:.0} MB/s</text>\n\
         <text class=\"dim\" x=\"{}\" y=\"{BOTTOM}\" text-anchor=\"end\">0</text>\n\
         <text class=\"dim\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">channels</text>\n",
        Size(report.size_bytes),
        report.content,
        report.runs,
        report.machine.processors,
        report.machine.kernel,
        LEFT - 6.0,
        TOP + 4.0,
        LEFT - 6.0,
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 34.0
    )
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::super::arm::Arm;
    use super::super::record::tests::report;
    use super::*;

    #[test]
    fn every_way_that_ran_has_a_line_and_the_best_dd_a_dashed_one() {
        let svg = draw(&report(&[
            (Arm::DdWrite(1 << 20), &[1.0]),
            (Arm::DdWrite(4 << 20), &[2.0]),
            (Arm::Save(1, DirectIoName::On), &[1.0]),
            (Arm::Save(4, DirectIoName::On), &[2.0]),
            (Arm::Save(4, DirectIoName::Off), &[1.5]),
            (Arm::QemuSave(4), &[]),
        ]));
        let document = Document::parse(&svg).unwrap();
        // Each has a sample beside its name.
        let of_class = |class: &str| {
            let nodes = document.descendants();
            let classes = nodes.filter_map(|node| node.attribute("class"));
            classes.filter(|found| found.starts_with(class)).count()
        };
        assert_eq!((of_class("line"), of_class("dash")), (4, 2), "{svg}");
    }

    #[test]
    fn a_picture_of_nothing_is_well_formed() {
        Document::parse(&draw(&report(&[]))).unwrap();
    }
}
