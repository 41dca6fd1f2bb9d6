// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `lacuna reconcile`.

use clap::Args;

/// `lacuna reconcile`
#[derive(Clone, Debug, Args)]
pub struct ReconcileArgs {
    /// What the source has left and what the destination has left, in either order (PATH, file:PATH or file:PATH,offset=N). The
    /// destination's alone is enough if nothing is missing in it
    #[arg(required = true, num_args = 1..=2, value_name = "HALF")]
    pub halves: Vec<String>,
    /// The snapshot to write. It gets its name when it is complete, and replaces a file of that name then
    #[arg(long, short, value_name = "FILE")]
    pub output: String,
    /// Print JSON, the missing pages included
    #[arg(long)]
    pub json: bool,
}
