// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sizes as people write them: `2G`, `256M`, `4096`, and back.

use std::fmt;
use std::str::FromStr;

use spec::PAGE_SIZE;

/// A number of bytes, or of bytes a second. The units `K`, `M`, `G` and `T` are powers of 1024 and may be followed
/// by `B` or `iB`. A number below the size of a page needs a unit, at least `B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a text is not taken as a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text is not a size.
    #[error("'{0}' is not a size: write a whole number and K, M, G or T, such as 512M")]
    NoSize(String),
    /// So few bytes that the unit was probably forgotten.
    #[error("'{0}' means {0} bytes, less than a page of memory: did you mean {0}M?")]
    FewBytes(u64),
}

const UNITS: [(&str, u32); 5] = [("T", 40), ("G", 30), ("M", 20), ("K", 10), ("", 0)];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError::NoSize(text.to_owned());
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        if unit.is_empty() && (1..PAGE_SIZE).contains(&number) {
            return Err(SizeError::FewBytes(number));
        }
        let unit = unit.to_ascii_uppercase();
        let unit = unit
            .strip_suffix("IB")
            .or_else(|| unit.strip_suffix('B'))
            .unwrap_or(&unit);
        let (_, shift) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(error)?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Size {
    /// About three digits and a binary unit: `1.50 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = UNITS
            .into_iter()
            .find(|(_, shift)| self.0 >= 1 << shift)
            .unwrap_or(("", 0));
        if shift == 0 {
            return write!(f, "{} B", self.0);
        }
        let value = self.0 as f64 / (1u64 << shift) as f64;
        let decimals = if value < 10.0 {
            2
        } else if value < 100.0 {
            1
        } else {
            0
        };
        write!(f, "{value:.decimals$} {unit}iB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("2G", 2 << 30),
            ("256m", 256 << 20),
            ("1KiB", 1024),
            ("64B", 64),
            ("3TB", 3 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "1.5G",
            "-1",
            "1X",
            "1 G",
            "99999999999T",
            "18446744073709551616",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_whose_unit_was_forgotten_is_refused_with_what_was_probably_meant() {
        for text in ["1", "64", "4095"] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text}M")), "{error}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536 << 20, "1.50 GiB"),
            (300 << 20, "300 MiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
