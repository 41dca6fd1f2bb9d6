// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Curves over time, as SVG. Colours and strokes are classes of the page's style.

use std::fmt::Write;

use super::html::escaped;

/// Points of the picture.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
/// Where the area of the curves begins and ends.
const LEFT: f64 = 56.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = HEIGHT - 34.0;
/// Height of the marks of one arm, below the area.
const MARK: f64 = 4.0;

/// A picture of curves.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: &'static str,
    /// The unit of the values.
    pub(super) unit: &'static str,
    pub(super) curves: Vec<Curve>,
    /// Moments, in seconds, with their class.
    pub(super) marks: Vec<(&'static str, Vec<f64>)>,
    /// The end of the axis; none: the greatest value.
    pub(super) most: Option<f64>,
}

/// A curve: values over seconds.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) class: &'static str,
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// It is thick, and told to those who cannot see it.
    pub(super) is_main: bool,
    pub(super) dashed: bool,
}

impl Plot {
    /// The picture.
    pub(super) fn draw(&self) -> String {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let (x_end, x_step) = axis(points().map(|point| point.0).fold(0.0, f64::max), 8.0);
        let most = (self.most).unwrap_or_else(|| points().map(|point| point.1).fold(0.0, f64::max));
        let (y_end, y_step) = axis(most, 5.0);
        let x = |value: f64| LEFT + (RIGHT - LEFT) * value / x_end;
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * value / y_end;
        let mut svg = self.begin();
        // Writing to a String does not fail.
        for value in ticks(y_end, y_step) {
            let (at, text) = (y(value), number(value, y_step));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"right\" x=\"{}\" y=\"{:.1}\">{text}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for value in ticks(x_end, x_step) {
            let (at, text) = (x(value), number(value, x_step));
            let _ = writeln!(
                svg,
                "<text class=\"middle\" x=\"{at:.1}\" y=\"{}\">{text}</text>",
                HEIGHT - 6.0
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"right\" x=\"{RIGHT}\" y=\"{}\">seconds</text>",
            HEIGHT - 18.0
        );
        for curve in &self.curves {
            let _ = writeln!(
                svg,
                "<path class=\"curve {}{}{}\" d=\"{}\"/>",
                curve.class,
                if curve.is_main { "" } else { " thin" },
                if curve.dashed { " dashed" } else { "" },
                path(curve, x, y)
            );
        }
        for (number, (class, moments)) in self.marks.iter().enumerate() {
            let top = BOTTOM + 2.0 + number as f64 * (MARK + 1.0);
            for moment in moments.iter().filter(|moment| **moment <= x_end) {
                let at = x(*moment);
                let end = top + MARK;
                let _ = writeln!(
                    svg,
                    "<line class=\"curve thin {class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{end}\"/>"
                );
            }
        }
        svg + "</svg>\n"
    }

    /// The head of the picture: what it shows, for those who cannot see it, and the legend.
    fn begin(&self) -> String {
        let mains = || self.curves.iter().filter(|curve| curve.is_main);
        let ends: Vec<String> = mains()
            .map(|curve| {
                let most = curve.points.iter().map(|point| point.1).fold(0.0, f64::max);
                let end = curve.points.last().map_or(0.0, |point| point.0);
                format!("{}: at most {most:.1}, until {end:.2} s", curve.name)
            })
            .collect();
        let label = format!("{} in {}. {}", self.title, self.unit, ends.join("; "));
        let mut svg = format!(
            "<svg role=\"img\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" aria-label=\"{}\">\n",
            escaped(&label)
        );
        let mut at = LEFT;
        // A dashed curve has the colour of a solid one.
        for curve in mains().filter(|curve| !curve.dashed) {
            let _ = writeln!(
                svg,
                "<line class=\"curve {}\" x1=\"{at}\" x2=\"{}\" y1=\"10\" y2=\"10\"/><text x=\"{}\" y=\"14\">{}</text>",
                curve.class,
                at + 18.0,
                at + 22.0,
                escaped(&curve.name)
            );
            at += 34.0 + 7.6 * curve.name.chars().count() as f64;
        }
        let _ = writeln!(
            svg,
            "<text class=\"dim\" x=\"4\" y=\"{}\">{}</text>",
            TOP - 8.0,
            escaped(self.unit)
        );
        svg
    }
}

/// The curve as a path, of lines from look to look.
fn path(curve: &Curve, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    for (number, (at, value)) in curve.points.iter().enumerate() {
        let command = if number == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", x(*at), y(*value));
    }
    path
}

/// The end of an axis that holds values up to `most`, and the distance of its ticks, of which there are `count` or fewer.
fn axis(most: f64, count: f64) -> (f64, f64) {
    let most = if most.is_finite() && most > 0.0 {
        most
    } else {
        1.0
    };
    let rough = most / count;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
    let step = steps.into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    ((most / step).ceil() * step, step)
}

fn ticks(end: f64, step: f64) -> impl Iterator<Item = f64> {
    let count = (end / step).round() as u32;
    (0..=count).map(move |number| f64::from(number) * step)
}

/// A tick's number, with the digits that its step needs.
fn number(value: f64, step: f64) -> String {
    let digits = (2.0 - step.log10().floor() - 2.0).max(0.0) as usize;
    let digits = digits + usize::from((step / 2.5).log10().fract() == 0.0 && step < 10.0);
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_its_values_with_round_ticks() {
        assert_eq!(axis(0.0, 5.0), (1.0, 0.2));
        assert_eq!(axis(100.0, 5.0), (100.0, 20.0));
        assert_eq!(axis(101.0, 5.0), (125.0, 25.0));
        assert_eq!(axis(f64::NAN, 5.0), (1.0, 0.2));
        for most in [0.003, 0.7, 1.0, 9.9, 12_345.0] {
            let (end, step) = axis(most, 5.0);
            assert!(end >= most && end <= most + step, "{most}: {end}, {step}");
            assert!(end / step <= 6.0);
        }
    }

    #[test]
    fn the_numbers_of_ticks_differ() {
        for step in [0.001, 0.02, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 25.0, 200.0] {
            let texts: Vec<String> = (0..5).map(|n| number(f64::from(n) * step, step)).collect();
            let mut unique = texts.clone();
            unique.dedup();
            assert_eq!(texts, unique, "{step}");
        }
    }

    #[test]
    fn curves_stay_in_their_area() {
        let curve = |points| Curve {
            class: "on",
            name: "hints on".into(),
            points,
            is_main: true,
            dashed: false,
        };
        let svg = Plot {
            title: "Title",
            unit: "MiB",
            curves: vec![curve(vec![(0.0, 10.0), (2.0, 0.0)]), curve(Vec::new())],
            marks: vec![("on", vec![0.0, 1.0, 99.0])],
            most: None,
        }
        .draw();
        assert!(svg.contains("d=\"M56.0 40.0L536.0 216.0\""), "{svg}");
        assert_eq!(
            svg.matches("curve thin on").count(),
            2,
            "none outside: {svg}"
        );
    }
}
