// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What standard output can show.

use std::io::{self, IsTerminal};

use crate::nested;

/// Columns where nobody says how many there are.
const USUAL_WIDTH: u16 = 80;
/// A terminal that claims to be narrower than this does not know.
const NARROWEST: u16 = 24;

/// Its columns.
pub fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stdout())
        .ok()
        .map(|size| size.ws_col)
        .filter(|&columns| columns >= NARROWEST);
    usize::from(columns.unwrap_or(USUAL_WIDTH))
}

/// Whether people see colours there and want them (<https://no-color.org>). The serial line of an emulated machine
/// is a terminal that passes everything on to who knows what.
pub fn has_colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() && !nested::inside()
}
