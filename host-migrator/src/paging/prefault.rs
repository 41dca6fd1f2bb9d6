// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast pages are loaded that nobody waits for.

use std::fmt;
use std::str::FromStr;

/// How fast pages are loaded that nobody waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefault {
    /// Not at all.
    Off,
    /// So many bytes a second at most.
    BytesPerSecond(u64),
    /// As fast as they come.
    #[default]
    Max,
}

/// Not a pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pace is off, max, or megabytes a second from 1 on, such as 200")]
pub struct NotAPace;

/// As on a command line: `off`, `max`, or megabytes a second.
impl FromStr for Prefault {
    type Err = NotAPace;

    fn from_str(text: &str) -> Result<Self, NotAPace> {
        match text {
            "off" => Ok(Self::Off),
            "max" => Ok(Self::Max),
            number => match number
                .parse::<u64>()
                .map(|mega| mega.checked_mul(1_000_000))
            {
                Ok(Some(bytes)) if bytes > 0 => Ok(Self::BytesPerSecond(bytes)),
                _ => Err(NotAPace),
            },
        }
    }
}

impl fmt::Display for Prefault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::BytesPerSecond(bytes) => write!(f, "{} MB/s", bytes / 1_000_000),
            Self::Max => f.write_str("max"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_read_as_it_is_written_on_a_command_line() {
        assert_eq!("off".parse(), Ok(Prefault::Off));
        assert_eq!("max".parse(), Ok(Prefault::Max));
        assert_eq!("200".parse(), Ok(Prefault::BytesPerSecond(200_000_000)));
        for text in [
            "0",
            "",
            "-1",
            "fast",
            "1.5",
            "99999999999999999999",
            "18446744073709551615",
        ] {
            assert_eq!(text.parse::<Prefault>(), Err(NotAPace), "{text}");
        }
    }
}
