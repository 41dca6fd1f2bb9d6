// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna dirty-rate`

use std::path::PathBuf;

use clap::Args;

use super::values::socket_path;
use crate::control::DirtyRateMode;

/// `lacuna dirty-rate`
///
/// A page that is written several times in a second counts once, as a migration would send it once. A guest that writes more than the
/// link takes does not converge by itself.
#[derive(Clone, Debug, Args)]
pub struct DirtyRateArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub seconds: u32,
    /// How to measure. A dirty log is not shared: such a measurement is refused while a migration is under way, and ends without a result
    /// when one begins
    #[arg(long, value_enum, default_value_t)]
    pub mode: DirtyRateMode,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
