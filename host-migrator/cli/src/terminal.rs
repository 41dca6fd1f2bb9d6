// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the terminal at standard output can show: its width, and colours.

use std::io::{self, IsTerminal};

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
