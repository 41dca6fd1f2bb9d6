// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the network between two machines of a comparison fails: `--cut MS[:HOW]`.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use super::values::milliseconds;

/// One failure of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How long after the guest was handed over, or after the last recovery.
    pub after: Duration,
    /// What the machines see of it.
    pub how: CutKind,
}

/// What the machines see when the network between them fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CutKind {
    /// Both sides see that the connection was closed
    #[default]
    Close,
    /// Both sides get a reset
    Reset,
    /// The source sees that the connection was closed; what it sends still arrives
    HalfSource,
    /// The destination sees that the connection was closed; what it sends still arrives
    HalfDestination,
    /// Nothing arrives any more, and nobody is told
    Silence,
}

impl FromStr for Cut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (after, how) = match text.split_once(':') {
            None => (text, CutKind::default()),
            Some((after, how)) => {
                let unknown = |_| {
                    let kinds = CutKind::value_variants().iter();
                    let names = kinds.filter_map(ValueEnum::to_possible_value);
                    let names: Vec<_> = names.map(|name| name.get_name().to_owned()).collect();
                    format!("'{how}' is not one of {}", names.join(", "))
                };
                (after, CutKind::from_str(how, false).map_err(unknown)?)
            }
        };
        let after = milliseconds(after)?;
        Ok(Self { after, how })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_has_a_time_and_a_kind_and_the_error_names_all_kinds() {
        let cut: Cut = "40".parse().unwrap();
        assert_eq!(cut.after, Duration::from_millis(40));
        assert_eq!(cut.how, CutKind::Close);
        let cut: Cut = "7:half-source".parse().unwrap();
        assert_eq!(cut.after, Duration::from_millis(7));
        assert_eq!(cut.how, CutKind::HalfSource);
        assert!("x:reset".parse::<Cut>().is_err());
        let unknown = "7:axe".parse::<Cut>().unwrap_err();
        assert!(unknown.contains("close, reset") && unknown.contains("silence"));
    }
}
