// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::port::Address;
use crate::preparation::Preparation;

/// Tells the host which pages of this guest are free, so that a live migration need not send them.
///
/// When the host asks, which it does during a migration, the agent reads /proc/kpageflags (as root). It does not allocate the
/// pages that it reports. If the guest uses such a page again, nothing is lost: the host notices the write.
#[derive(Clone, Debug, Parser)]
#[command(name = "lacuna-agent", version, max_term_width = 100)]
pub struct Args {
    /// Where the host is: virtio:NAME (a virtio-console port), vsock:CID:PORT, or the path of a character device
    #[arg(short, long, default_value = "virtio:org.lacuna.agent.0")]
    pub port: Address,

    /// File with the key by which the host's device recognises this agent (the device's --agent-key). Needed over vsock, which
    /// every process of the guest can use. Only root may be able to read it: mode 600
    #[arg(short, long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// When a migration begins, first drop the clean page cache. Fewer bytes are sent, but the guest must read from its disk
    /// what it reads again
    #[arg(long)]
    pub drop_caches: bool,

    /// When a migration begins, first compact memory. This makes longer runs of free pages, but costs the guest processor
    /// time, and writes many pages, which must then be sent
    #[arg(long)]
    pub compact: bool,

    /// End when the host hangs up, instead of waiting for it
    #[arg(long)]
    pub once: bool,

    /// Print a summary of the free pages, and end
    #[arg(long)]
    pub print: bool,
}

impl Args {
    /// What the agent may do before the first map of a migration.
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
    fn the_command_line_is_valid_and_both_preparations_are_off_by_default() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["lacuna-agent"]).unwrap();
        assert_eq!(args.preparation(), Preparation::default());
    }
}
