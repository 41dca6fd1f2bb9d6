// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers on the kernel's command line: `lacuna.NAME=NUMBER`.

use thiserror::Error;

/// A parameter whose value is not a number.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("lacuna.{name}={value} is not a number")]
pub struct NotANumber {
    name: &'static str,
    value: String,
}

/// The value of `lacuna.name`, or `default` if the command line does not have it. As with the kernel's
/// own parameters the last one counts.
pub fn number(command_line: &str, name: &'static str, default: u64) -> Result<u64, NotANumber> {
    let value = command_line
        .split_ascii_whitespace()
        .rev()
        .find_map(|word| {
            word.strip_prefix("lacuna.")?
                .strip_prefix(name)?
                .strip_prefix('=')
        });
    let Some(value) = value else {
        return Ok(default);
    };
    value.parse().map_err(|_| NotANumber {
        name,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_the_whole_name_counts() {
        let line = "console=ttyS0 lacuna.seed=1 lacuna.seeds=9 lacuna.seed=2\n";
        assert_eq!(number(line, "seed", 0), Ok(2));
        assert_eq!(number(line, "churn", 7), Ok(7));
    }

    #[test]
    fn a_value_with_a_unit_is_refused() {
        let error = number("lacuna.in_use=256M", "in_use", 0).unwrap_err();
        assert_eq!(error.to_string(), "lacuna.in_use=256M is not a number");
    }
}
