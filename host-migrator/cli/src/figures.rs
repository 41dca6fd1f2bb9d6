// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures for people: tables, bars and medians.

/// Columns of the longest bar.
pub(crate) const BAR_WIDTH: usize = 48;

/// Lines with aligned columns.
pub(crate) fn aligned(headings: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let mut rows = vec![headings.iter().map(|&heading| heading.to_owned()).collect()];
    rows.extend(lines);
    let widths: Vec<usize> = (0..headings.len())
        .map(|c| rows.iter().map(|r| r[c].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            })
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
        if number == 0 {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
            text.push('\n');
        }
    }
    text
}

/// A bar of `eighths` eighths of a column, and at least one, so that a small value is visible.
pub(crate) fn bar(eighths: usize) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = eighths.max(1);
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

/// The median; 0 for none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_two_lies_between_them() {
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median([9.0, 1.0, 4.0].into_iter()), 4.0);
    }
}
