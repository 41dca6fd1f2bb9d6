// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which machine of a comparison is killed: `--kill SIDE[:MS]`.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::values::milliseconds;

/// The death of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Which machine dies.
    pub side: KilledSide,
    /// How long after the guest was handed over the connection breaks for good.
    pub after: Duration,
}

/// A machine of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KilledSide {
    /// The one that has handed the guest over
    Source,
    /// The one where the guest runs
    Destination,
}

/// The default of [`Kill::after`].
const AFTER: Duration = Duration::from_millis(20);

impl FromStr for Kill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (side, after) = match text.split_once(':') {
            None => (text, AFTER),
            Some((side, after)) => (side, milliseconds(after)?),
        };
        let unknown = |_| format!("'{side}' is not source or destination");
        let side = KilledSide::from_str(side, false).map_err(unknown)?;
        Ok(Self { side, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_names_a_side_and_may_have_a_time() {
        let kill: Kill = "source".parse().unwrap();
        assert_eq!((kill.side, kill.after), (KilledSide::Source, AFTER));
        let kill: Kill = "destination:7".parse().unwrap();
        assert_eq!(kill.after, Duration::from_millis(7));
        assert!("guest".parse::<Kill>().is_err());
        assert!("source:soon".parse::<Kill>().is_err());
    }
}
