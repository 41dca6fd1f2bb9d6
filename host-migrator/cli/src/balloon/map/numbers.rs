// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages of one kind in numbers: how many there are, and how long their runs are.

use std::fmt::Write;

use serde_json::json;
use spec::{PAGE_SIZE, PageRange};

use crate::size::Size;

/// Columns of the longest bar.
const BAR: u64 = 32;

/// The numbers of a set of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Pages.
    pub pages: u64,
    /// Runs that they form.
    pub runs: u64,
    /// The first of the longest runs.
    pub longest: Option<PageRange>,
    /// For each power of two: runs at least this long and shorter than the next, and their pages.
    pub by_length: Vec<(u64, u64)>,
}

impl Numbers {
    /// The numbers of the pages that form `runs`.
    pub fn count(runs: impl IntoIterator<Item = PageRange>) -> Self {
        let mut numbers = Self::default();
        for run in runs {
            numbers.pages += run.count();
            numbers.runs += 1;
            if numbers
                .longest
                .is_none_or(|longest| longest.count() < run.count())
            {
                numbers.longest = Some(run);
            }
            let power = run.count().ilog2() as usize;
            if numbers.by_length.len() <= power {
                numbers.by_length.resize(power + 1, (0, 0));
            }
            numbers.by_length[power].0 += 1;
            numbers.by_length[power].1 += run.count();
        }
        numbers
    }

    /// The numbers as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let by_length: Vec<_> = self
            .powers()
            .map(|(power, runs, pages)| {
                json!({"from-pages": 1u64 << power, "runs": runs, "pages": pages})
            })
            .collect();
        json!({
            "pages": self.pages,
            "bytes": self.pages * PAGE_SIZE,
            "runs": self.runs,
            "longest": self.longest.map(|run| {
                json!({"start": run.first() * PAGE_SIZE, "bytes": run.bytes()})
            }),
            "by-length": by_length,
        })
    }

    /// The numbers as text: a line with the sums, and for each length a bar in proportion to its pages.
    pub fn to_text(&self, name: &str) -> String {
        let mut text = format!(
            "{name:<8}{} in {} page(s), {} run(s)",
            Size(self.pages * PAGE_SIZE),
            self.pages,
            self.runs
        );
        if let Some(longest) = self.longest {
            let at = longest.first() * PAGE_SIZE;
            // Writing to a String does not fail.
            let _ = write!(text, ", the longest {} at {at:#x}", Size(longest.bytes()));
        }
        text.push('\n');
        for (power, runs, pages) in self.powers() {
            let from = Size(PAGE_SIZE << power).to_string();
            let bar = "#".repeat((pages * BAR).div_ceil(self.pages) as usize);
            let all = Size(pages * PAGE_SIZE).to_string();
            let line = format!("  from {from:>9} {runs:>8} run(s) {all:>9}  {bar}");
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// Lengths that occur: power of two, runs, pages.
    fn powers(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        self.by_length
            .iter()
            .enumerate()
            .filter(|(_, (runs, _))| *runs > 0)
            .map(|(power, &(runs, pages))| (power, runs, pages))
    }
}

#[cfg(test)]
mod tests {
    use super::super::layers::tests::range;
    use super::*;

    #[test]
    fn runs_are_counted_by_the_power_of_two_of_their_length() {
        let numbers = Numbers::count([
            range(0, 1),
            range(2, 1),
            range(4, 3),
            range(100, 1024),
            range(2000, 1025),
        ]);
        assert_eq!((numbers.pages, numbers.runs), (2054, 5));
        assert_eq!(numbers.longest, Some(range(2000, 1025)));
        assert_eq!(numbers.by_length.len(), 11);
        assert_eq!(numbers.by_length[0], (2, 2));
        assert_eq!(numbers.by_length[1], (1, 3));
        assert_eq!(numbers.by_length[10], (2, 2049));
        let text = numbers.to_text("free");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "free    8.02 MiB in 2054 page(s), 5 run(s), the longest 4.00 MiB at 0x7d0000"
        );
        assert_eq!(lines[1], "  from  4.00 KiB        2 run(s)  8.00 KiB  #");
        assert_eq!(lines.len(), 4);
        let json = numbers.to_json();
        assert_eq!(json["by-length"][2]["from-pages"], 1024);
        assert_eq!(json["longest"]["bytes"], 1025 * 4096);
    }

    #[test]
    fn no_pages_are_no_division_by_zero() {
        let none = Numbers::count([]);
        assert_eq!(
            none.to_text("balloon"),
            "balloon 0 B in 0 page(s), 0 run(s)\n"
        );
        assert_eq!(none.to_json()["longest"], serde_json::Value::Null);
    }
}
