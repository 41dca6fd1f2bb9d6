// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `lacuna serve`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use host_migrator::paging::Prefault;
use rustix::fs::Mode;

use super::values::socket_path;

/// `lacuna serve`
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The file with the guest's memory: a snapshot (PATH, file:PATH or file:PATH,offset=N), or a memory file of Firecracker's
    pub file: String,
    /// The socket on which restoring VMMs connect: the backend_path of Firecracker's mem_backend
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub uffd_socket: PathBuf,
    /// Octal permission bits of the socket: who may connect, and read the guest's memory [default: 600]
    #[arg(long, value_name = "MODE", value_parser = spec_sockets::access::mode)]
    pub uffd_socket_mode: Option<Mode>,
    /// How fast pages are loaded that no guest waits for: off, max, or megabytes a second
    #[arg(long, value_name = "PACE", default_value = "off")]
    pub prefault: Prefault,
    /// Threads that answer each client's faults
    #[arg(long, value_name = "N", default_value = "2")]
    pub threads: NonZeroUsize,
    /// End when the first client has hung up
    #[arg(long)]
    pub once: bool,
    /// Print a line of JSON for each client that has hung up
    #[arg(long)]
    pub json: bool,
}
