// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every bench does with its report.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::BenchError;

/// Prints `report` as JSON, or else as `text`. Draws its picture into a file, if one was named.
///
/// # Errors
/// [`BenchError`] if it cannot be written.
pub(super) fn show<R: Serialize>(
    report: &R,
    json: bool,
    text: impl FnOnce(&R) -> String,
    picture: Option<&Path>,
    draw: impl FnOnce(&R) -> String,
) -> Result<(), BenchError> {
    let text = match json {
        true => serde_json::to_string_pretty(report).unwrap_or_default(),
        false => text(report),
    };
    // A closed pipe (`| head`) is an error to report, not a panic.
    writeln!(io::stdout(), "{}", text.trim_end())
        .map_err(BenchError::io("cannot write the results"))?;
    if let Some(path) = picture {
        fs::write(path, draw(report)).map_err(BenchError::io("cannot write the picture"))?;
    }
    Ok(())
}
