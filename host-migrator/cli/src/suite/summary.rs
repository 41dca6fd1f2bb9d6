// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The record of a suite as a table: a line for each mode of each scenario, with medians and spread.

use super::record::{Arm, Spread, SuiteRecord};
use crate::figures::aligned;

/// The figures of an arm, with their headings.
pub(super) const HEADINGS: [&str; 9] = [
    "hints",
    "runs",
    "total ms",
    "ratio",
    "down ms",
    "sent / in use",
    "rounds",
    "throttle %",
    "wrong/compared",
];

/// The table, and what it was measured on.
pub(super) fn table(record: &SuiteRecord) -> String {
    let mut headings = vec!["scenario"];
    headings.extend(HEADINGS);
    let mut lines = Vec::new();
    for scenario in &record.scenarios {
        let arms = scenario.arms();
        for (number, arm) in arms.iter().enumerate() {
            let mut cells = vec![if number == 0 {
                scenario.name.clone()
            } else {
                String::new()
            }];
            cells.extend(figures(arm, &arms));
            lines.push(cells);
        }
    }
    format!(
        "{}\n\n{}\nMedians, with the least and the most of all runs.\n",
        heading(record),
        aligned(&headings, lines.into_iter())
    )
}

/// What was run, where and when.
pub(super) fn heading(record: &SuiteRecord) -> String {
    let machine = &record.machine;
    format!(
        "suite {}, {}, {} with {} processors, Linux {}, load {:.1} before; {}",
        record.suite,
        record.date,
        machine.processor,
        machine.processors,
        machine.kernel,
        machine.load_before,
        record.program
    )
}

/// The figures of `arm`, one of `arms`.
pub(super) fn figures(arm: &Arm<'_>, arms: &[Arm<'_>]) -> Vec<String> {
    let total = arm.spread(|it| it.total_ms);
    let first = arms
        .first()
        .map_or(total, |arm| arm.spread(|it| it.total_ms));
    let wrong = |it: &crate::compare::Record| it.pages_wrong + it.guest_wrong;
    let sum = |figure: fn(&crate::compare::Record) -> u64| -> u64 {
        arm.runs.iter().map(|run| figure(&run.record)).sum()
    };
    vec![
        arm.mode.to_string(),
        arm.runs.len().to_string(),
        spread(total, 0),
        format!("{:.2}", total.median / first.median.max(f64::MIN_POSITIVE)),
        spread(arm.spread(|it| it.downtime_ms), 1),
        spread(arm.spread(|it| it.wire_per_in_use()), 2),
        format!("{:.0}", arm.spread(|it| it.rounds as f64).median),
        format!(
            "{:.0}",
            arm.spread(|it| it.throttle_max_percent.into()).median
        ),
        format!("{}/{}", sum(wrong), sum(|it| it.pages_compared)),
    ]
}

fn spread(of: Spread, digits: usize) -> String {
    let Spread {
        least,
        median,
        most,
    } = of;
    // One run has no spread.
    match least == most {
        true => format!("{median:.digits$}"),
        false => format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::suite;
    use super::*;

    #[test]
    fn a_figure_that_all_runs_share_has_no_range() {
        let of = |least, most| Spread {
            least,
            median: 2.0,
            most,
        };
        assert_eq!(spread(of(2.0, 2.0), 1), "2.0");
        assert_eq!(spread(of(1.0, 2.0), 1), "2.0 (1.0-2.0)");
    }

    #[test]
    fn each_mode_has_a_line_with_its_median_spread_and_ratio() {
        let text = table(&suite("one"));
        let line = |mode: &str| {
            let found = text.lines().find(|line| line.contains(mode));
            found
                .unwrap_or_else(|| panic!("{mode} in {text}"))
                .to_owned()
        };
        assert!(line(" off ").starts_with("one"), "{text}");
        assert!(line(" off ").contains("20 (10-30)"), "{text}");
        assert!(line(" on ").contains("2 (1-3)"), "{text}");
        assert!(line(" on ").contains("0.10"), "{text}");
        assert!(line(" on ").contains("0/27"), "{text}");
    }
}
