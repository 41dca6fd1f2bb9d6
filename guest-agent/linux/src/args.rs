// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::port::Address;
use crate::preparation::Preparation;

/// Tells the host which pages of this guest are free, so that a live migration need not send them.
///
/// It reads /proc/kpageflags (as root) when the host asks, which is when a migration runs. It allocates none of the
/// pages that it reports; that a page is used again the next moment is no harm, the host sees that by itself.
#[derive(Clone, Debug, Parser)]
#[command(name = "lacuna-agent", version, max_term_width = 100)]
pub struct Args {
    /// Where the host is: virtio:NAME (a virtio-console port), vsock:CID:PORT, or the path of a character device
    #[arg(short, long, default_value = "virtio:org.lacuna.agent.0")]
    pub port: Address,

    /// File with the key that the host's device has, too (its --agent-key), by which it knows this agent: needed over vsock,
    /// which every process of the guest can use. Only root may read it: mode 600
    #[arg(short, long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// When a migration begins, drop the clean page cache first: fewer bytes are sent, but what the guest reads
    /// again afterwards comes from its disk
    #[arg(long)]
    pub drop_caches: bool,

    /// When a migration begins, compact memory first: longer runs of free pages, for some processor time of the
    /// guest and many pages written anew, which are then sent
    #[arg(long)]
    pub compact: bool,

    /// End when the host hangs up, instead of waiting for it
    #[arg(long)]
    pub once: bool,

    /// Print what would be told now, and end
    #[arg(long)]
    pub print: bool,
}

impl Args {
    /// What may be done before the first map of a migration.
    pub fn preparation(&self) -> Preparation {
        Preparation {
            drop_caches: self.drop_caches,
            compact: self.compact,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound_and_nothing_is_prepared_unasked() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["lacuna-agent"]).unwrap();
        assert_eq!(args.preparation(), Preparation::default());
    }
}
