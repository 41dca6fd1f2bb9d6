// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines for the watcher on the other side of the serial line.

use std::{
    fmt::Arguments,
    io::{Write, stdout},
};

/// Writes one `lacuna-guest:` line. A console that cannot be written must not stop the guest, so an
/// error has nowhere to go.
pub fn say(line: Arguments) {
    let _ = writeln!(stdout(), "lacuna-guest: {line}");
}
