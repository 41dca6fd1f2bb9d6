// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a guest is handed over before its memory.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// When the guest is handed over before its memory was sent. The migration may end without that, if all of it can be sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum PostcopyStart {
    /// When [`MigrationMonitor::start_postcopy`](crate::MigrationMonitor::start_postcopy) is called.
    OnCommand,
    /// When the migration would not end otherwise, of what [`MigrationParams::goals`](crate::MigrationParams::goals) allow; without these, if
    /// the guest writes faster than the link sends. Or on command.
    WhenStalled,
    /// At once: before it, only the guest's hints are waited for.
    AtOnce,
    /// After so many rounds.
    After(NonZeroU32),
}

impl fmt::Display for PostcopyStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnCommand => f.write_str("on-command"),
            Self::WhenStalled => f.write_str("when-stalled"),
            Self::AtOnce => f.write_str("at-once"),
            Self::After(rounds) => rounds.fmt(f),
        }
    }
}

/// A text that names no start of a postcopy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not at-once, when-stalled, on-command or a number of rounds")]
pub struct NotAStart;

impl FromStr for PostcopyStart {
    type Err = NotAStart;

    fn from_str(text: &str) -> Result<Self, NotAStart> {
        match text {
            "on-command" => Ok(Self::OnCommand),
            "when-stalled" => Ok(Self::WhenStalled),
            "at-once" => Ok(Self::AtOnce),
            rounds => rounds.parse().map(Self::After).map_err(|_| NotAStart),
        }
    }
}

impl From<PostcopyStart> for String {
    fn from(start: PostcopyStart) -> Self {
        start.to_string()
    }
}

impl TryFrom<String> for PostcopyStart {
    type Error = NotAStart;

    fn try_from(text: String) -> Result<Self, NotAStart> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_read_as_it_is_written() {
        for text in ["on-command", "when-stalled", "at-once", "1", "12"] {
            let start: PostcopyStart = text.parse().unwrap();
            assert_eq!(start.to_string(), text);
        }
        for text in ["", "0", "-1", "never"] {
            assert_eq!(text.parse::<PostcopyStart>(), Err(NotAStart), "{text}");
        }
    }
}
