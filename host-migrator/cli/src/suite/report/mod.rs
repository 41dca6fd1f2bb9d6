// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The record of a suite as one HTML page: it needs nothing else, asks nobody for anything, and has no script.
//!
//! Everything is reached with the keyboard, in light and dark, on paper too. The page itself forbids browsers to load anything.
//!
//! | module | what it is |
//! |---|---|
//! | `plot` | curves over time |
//! | `bars` | bars with the spread of the runs |
//! | `html` | text and figures as HTML |

mod bars;
mod html;
mod plot;

use std::fmt::Write;

use host_migrator::MigrationEvent;

use self::bars::{Bar, Bars};
use self::html::{escaped, figure, table};
use self::plot::{Curve, Plot};
use super::record::{Arm, Run, ScenarioRecord, SuiteRecord};
use super::summary;
use crate::compare::{GuestGaps, Record};
use crate::control::HintMode;
use crate::waits::time;

/// The looks.
const STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn page(record: &SuiteRecord) -> String {
    let mut body = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        body,
        "<a class=\"skip\" href=\"#overview\">Skip the list of scenarios</a>\n<header><h1>Lacuna: what hints are worth</h1>\n\
         <p>{}</p></header>\n<nav aria-label=\"Scenarios\"><ul>\n<li><a href=\"#overview\">Overview</a></li>",
        escaped(&summary::heading(record))
    );
    for (number, scenario) in record.scenarios.iter().enumerate() {
        let name = escaped(&scenario.name);
        let _ = writeln!(body, "<li><a href=\"#s{number}\">{name}</a></li>");
    }
    body += "</ul></nav>\n<main>\n";
    overview(&mut body, record);
    for (number, one) in record.scenarios.iter().enumerate() {
        scenario(&mut body, number, one);
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>Lacuna: suite {}, {}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n{body}</main>\n</body>\n</html>\n",
        escaped(&record.suite),
        escaped(&record.date)
    )
}

/// All scenarios beside each other.
fn overview(body: &mut String, record: &SuiteRecord) {
    *body += "<section id=\"overview\" tabindex=\"-1\"><h2>Overview</h2>\n\
        <p>A bar is the median of the runs, a line the least and the most of them. Every page of every guest was compared after its migration.</p>\n\
        <div class=\"figures\">\n";
    let has_gaps = record.scenarios.iter().any(ScenarioRecord::has_gaps);
    let bars = |title, unit, value: fn(&Record) -> f64| {
        let of_arm = |scenario: &ScenarioRecord| -> Vec<Bar> {
            let bar = |arm: &Arm<'_>| Bar {
                class: class_of(arm.mode),
                name: format!("hints {}", arm.mode),
                spread: arm.spread(value),
            };
            scenario.arms().iter().map(bar).collect()
        };
        Bars {
            title,
            unit,
            groups: (record.scenarios.iter())
                .map(|scenario| (scenario.name.clone(), of_arm(scenario)))
                .collect(),
        }
    };
    for bars in [
        bars("Total time", "s", |it| it.total_ms / 1000.0),
        bars("Bytes sent ÷ bytes in use", "", Record::wire_per_in_use),
        bars("Downtime", "ms", |it| it.downtime_ms),
    ] {
        *body += &figure(bars.title, "", &bars.draw());
    }
    if has_gaps {
        let longest = bars("Longest gap of the guest", "ms", |it| {
            gap(it, |gaps| gaps.during.max)
        });
        let about = "While it was migrated and ran: the longest time between two beats of a guest that wants to beat each millisecond.";
        *body += &figure(longest.title, about, &longest.draw());
    }
    *body += "</div>\n";
    let mut headings = vec!["scenario"];
    headings.extend(summary::HEADINGS);
    let mut rows = Vec::new();
    for scenario in &record.scenarios {
        let arms = scenario.arms();
        for arm in &arms {
            let mut row = vec![scenario.name.clone()];
            row.extend(summary::figures(arm, &arms));
            rows.push(row);
        }
    }
    *body += &table(
        "All figures: medians, with the least and the most",
        &headings,
        &rows,
    );
    *body += "</section>\n";
}

/// One scenario with its curves.
fn scenario(body: &mut String, number: usize, scenario: &ScenarioRecord) {
    let _ = writeln!(
        body,
        "<section id=\"s{number}\" tabindex=\"-1\"><h2>{}</h2>\n<p>{}</p>\n<div class=\"figures\">",
        escaped(&scenario.name),
        escaped(&scenario.about)
    );
    let arms = scenario.arms();
    for (plot, about) in plots(&arms) {
        *body += &figure(plot.title, about, &plot.draw());
    }
    if scenario.has_gaps() {
        let about = "How long the guest did not run, in its own view, between beats of a millisecond: before the migration and during it.";
        *body += &figure("Guest latency", about, &gaps(&arms).draw());
    }
    let lengths = scenario.waits();
    if !lengths.is_empty() {
        let about = "How many times the guest waited for a page that was not there yet, and how long: less than so much, and at least half of it.";
        *body += &figure("Waits for pages", about, &waits(&arms, &lengths).draw());
    }
    *body += "</div>\n";
    let rows: Vec<_> = scenario.runs.iter().map(|run| row(&run.record)).collect();
    *body += &table("Each run", &RUN_HEADINGS, &rows);
    let decisions = arms.iter().filter_map(|arm| {
        let run = arm.typical()?;
        let words = (!run.record.decisions.is_empty()).then_some(&run.record.decisions)?;
        let items: String = (words.iter())
            .map(|text| format!("<li>{}</li>\n", escaped(text)))
            .collect();
        let mode = arm.mode;
        Some(format!(
            "<h3>What was decided, hints {mode}</h3>\n<ol>\n{items}</ol>\n"
        ))
    });
    body.extend(decisions);
    *body += "</section>\n";
}

/// The curves of the arms, each with a sentence about how to read it.
fn plots<'a>(arms: &[Arm<'a>]) -> Vec<(Plot, &'static str)> {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1u32 << 20);
    let seconds = |run: &Run| -> Vec<f64> {
        let ms = run.course.ms.iter();
        ms.map(|ms| *ms as f64 / 1000.0).collect()
    };
    let curves = |what: &str, dashed: bool, values: &dyn Fn(&Run) -> Vec<f64>| -> Vec<Curve> {
        let mut curves = Vec::new();
        for arm in arms {
            let typical = arm.typical();
            for run in &arm.runs {
                let is_typical = typical.is_some_and(|it| std::ptr::eq(it, *run));
                curves.push(Curve {
                    class: class_of(arm.mode),
                    name: format!("{what}hints {}", arm.mode),
                    points: seconds(run).into_iter().zip(values(run)).collect(),
                    is_main: is_typical,
                    dashed,
                });
            }
        }
        // Thick lines lie above thin ones.
        curves.sort_by_key(|curve| curve.is_main);
        curves
    };
    let marks: Vec<_> = (arms.iter())
        .filter_map(|arm| Some((class_of(arm.mode), begins(arm.typical()?))))
        .collect();
    let remaining = Plot {
        title: "Still to be sent",
        unit: "MiB",
        curves: curves("", false, &|run| {
            run.course
                .remaining
                .iter()
                .map(|it| mebibytes(*it))
                .collect()
        }),
        marks: marks.clone(),
        most: None,
    };
    let mut rates = curves("", false, &|run| {
        run.course.sent_rate().into_iter().map(mebibytes).collect()
    });
    rates.extend(curves("dirtied, ", true, &|run| {
        run.course
            .dirty_rate
            .iter()
            .map(|it| mebibytes(*it))
            .collect()
    }));
    let rates = Plot {
        title: "Sent and dirtied",
        unit: "MiB a second",
        curves: rates,
        marks: marks.clone(),
        most: None,
    };
    let throttle = Plot {
        title: "Throttle",
        unit: "% of the guest's time",
        curves: curves("", false, &|run| {
            run.course
                .throttle
                .iter()
                .map(|it| f64::from(*it))
                .collect()
        }),
        marks,
        most: Some(100.0),
    };
    vec![
        (
            remaining,
            "Thick: the run with the median time. Thin: the other runs. Ticks below: where iterations begin.",
        ),
        (
            rates,
            "Solid: sent. Dashed: dirtied by the guest, as the last harvest of its log found it.",
        ),
        (
            throttle,
            "How much of its processors' time the guest did not get.",
        ),
    ]
}

/// A figure of the guest's gaps; 0 if it did not count them.
fn gap(record: &Record, figure: impl Fn(&GuestGaps) -> f64) -> f64 {
    record.guest_gap_ms.as_ref().map_or(0.0, figure)
}

/// The guest's gaps with each arm.
fn gaps(arms: &[Arm<'_>]) -> Bars {
    let group = |name: &str, figure: fn(&GuestGaps) -> f64| {
        let bar = |arm: &Arm<'_>| Bar {
            class: class_of(arm.mode),
            name: format!("hints {}", arm.mode),
            spread: arm.spread(|record| gap(record, figure)),
        };
        (name.to_owned(), arms.iter().map(bar).collect())
    };
    Bars {
        title: "Guest latency",
        unit: "ms",
        groups: vec![
            group("p99 before", |it| it.without_migration.p99),
            group("p99 during", |it| it.during.p99),
            group("p99.9 before", |it| it.without_migration.p999),
            group("p99.9 during", |it| it.during.p999),
            group("longest before", |it| it.without_migration.max),
            group("longest during", |it| it.during.max),
        ],
    }
}

/// How many waits for pages had each of these `lengths` with each arm.
fn waits(arms: &[Arm<'_>], lengths: &[u64]) -> Bars {
    let count = |record: &Record, below: u64| {
        let waits = record
            .fault_waits
            .iter()
            .filter(|some| some.below_us == below);
        waits.map(|some| some.faults as f64).sum()
    };
    let group = |below: &u64| {
        let bar = |arm: &Arm<'_>| Bar {
            class: class_of(arm.mode),
            name: format!("hints {}", arm.mode),
            spread: arm.spread(|record| count(record, *below)),
        };
        let bars = arms.iter().map(bar).collect();
        (format!("under {}", time(*below)), bars)
    };
    Bars {
        title: "Waits for pages",
        unit: "waits",
        groups: lengths.iter().map(group).collect(),
    }
}

/// The seconds at which the iterations of `run` began.
fn begins(run: &Run) -> Vec<f64> {
    let events = run.course.events.iter();
    events
        .filter(|it| matches!(it.event, MigrationEvent::MigrationPass { .. }))
        .map(|it| it.ms as f64 / 1000.0)
        .collect()
}

const RUN_HEADINGS: [&str; 9] = [
    "hints",
    "seed",
    "total ms",
    "down ms",
    "expected ms",
    "sent MiB",
    "rounds",
    "harvests",
    "throttle %",
];

fn row(record: &Record) -> Vec<String> {
    vec![
        record.hints.to_string(),
        record.seed.to_string(),
        format!("{:.0}", record.total_ms),
        format!("{:.1}", record.downtime_ms),
        format!("{:.1}", record.expected_downtime_ms),
        format!("{:.1}", record.wire_bytes as f64 / f64::from(1u32 << 20)),
        record.rounds.to_string(),
        record.dirty_sync_count.to_string(),
        record.throttle_max_percent.to_string(),
    ]
}

/// The colour of a mode.
fn class_of(mode: HintMode) -> &'static str {
    match mode {
        HintMode::Off => "off",
        HintMode::Holes => "holes",
        HintMode::On => "on",
    }
}

#[cfg(test)]
mod tests {
    use host_migrator::paging::Waits;

    use super::super::record::tests::suite;
    use super::*;

    #[test]
    fn waits_are_shown_for_a_guest_that_had_some() {
        let mut record = suite("lazy");
        assert!(!page(&record).contains("Waits for pages"));
        for (below_us, faults) in [(64, 9), (256, 2)] {
            let some = Waits { below_us, faults };
            record.scenarios[0].runs[0].record.fault_waits.push(some);
        }
        let page = page(&record);
        for text in [
            "Waits for pages",
            "under 64 us",
            "under 128 us",
            "under 256 us",
        ] {
            assert!(page.contains(text), "{text}");
        }
    }

    #[test]
    fn every_scenario_has_its_plots_and_names_are_only_text() {
        let page = page(&suite("<script>alert(1)</script>"));
        assert!(!page.contains("<script"), "a name is only text");
        assert_eq!(page.matches("<figure").count(), 3 + 3);
        assert_eq!(page.matches("<svg").count(), 3 + 3);
        let body = &page[page.find("<body>").unwrap()..];
        let body = &body[..body.find("</html>").unwrap()];
        roxmltree::Document::parse(body).expect("well-formed");
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
