// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the terminal can show: width and colours of standard output, and progress on standard error.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::nested;

/// Columns if the terminal does not say how many it has.
const USUAL_WIDTH: u16 = 80;
/// A terminal that reports fewer columns does not know its width.
const NARROWEST: u16 = 24;

/// Its width in columns.
pub fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stdout())
        .ok()
        .map(|size| size.ws_col)
        .filter(|&columns| columns >= NARROWEST);
    usize::from(columns.unwrap_or(USUAL_WIDTH))
}

/// Whether standard output is a terminal and `NO_COLOR` is not set (<https://no-color.org>). The serial line of an
/// emulated machine does not count as a terminal: its output may end up anywhere.
pub fn has_colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() && !nested::inside()
}

/// A bar for `bytes` bytes on a terminal; nothing where [`progress_bar`] shows nothing.
pub fn bytes_bar(bytes: u64, json: bool) -> ProgressBar {
    let style =
        "[{elapsed_precise}] {bar:24} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}";
    styled_bar(bytes, style, json)
}

/// A bar for `runs` runs on a terminal; nothing where standard error is a file or a program reads the results (`json`).
pub fn progress_bar(runs: usize, json: bool) -> ProgressBar {
    let style = "[{elapsed_precise}] run {pos}/{len} {bar:24} {msg}";
    styled_bar(runs as u64, style, json)
}

fn styled_bar(length: u64, style: &str, json: bool) -> ProgressBar {
    if json || nested::inside() || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
