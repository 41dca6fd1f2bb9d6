// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of `lacuna compare` for a suite of scenarios.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

/// The heading of these flags in the help.
const HEADING: &str = "Suites of scenarios";

/// Which suite, and what becomes of its results.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("results").args(["suite", "from_record"]))]
pub struct SuiteArgs {
    /// Run many scenarios: quick (minutes), full (an hour or more), or those of a TOML file, which names flags of this command for each
    /// scenario. Other flags of the command line count in every scenario
    #[arg(long, value_name = "SUITE", help_heading = HEADING)]
    pub suite: Option<PathBuf>,
    /// Show a suite that was recorded before, and run nothing
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub from_record: Option<PathBuf>,
    /// Write the results as JSON into FOLDER/DATE-MACHINE/SUITE.json
    #[arg(long, value_name = "FOLDER", requires = "suite", help_heading = HEADING)]
    pub record: Option<PathBuf>,
    /// With --suite or --from-record: write a report, one HTML page with the curves of every scenario
    #[arg(long, value_name = "FILE", requires = "results", help_heading = HEADING)]
    pub report: Option<PathBuf>,
}

impl SuiteArgs {
    /// Whether a suite is meant.
    #[must_use]
    pub fn is_meant(&self) -> bool {
        self.suite.is_some() || self.from_record.is_some()
    }
}
