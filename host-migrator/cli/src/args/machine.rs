// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of a machine and its guest: `lacuna run` and `lacuna receive`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use host_migrator::paging::Prefault;
use reference_vmm::DirtyLogKind;
use reference_vmm::dirty_ring::RING_ENTRIES;
use rustix::fs::{Gid, Mode};
use spec_sockets::access;

use super::target::Target;
use super::tls::TlsArgs;
use super::values::{PEER_TIMEOUT, peer_timeout, socket_path};
use crate::control::DirectIoName;
use crate::size::Size;
use crate::trace::TraceArgs;

/// `lacuna run`
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// What its guest does.
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// Linux guest: the kernel (bzImage or ELF)
    #[arg(long, value_name = "FILE", required_if_eq("guest", "linux"))]
    pub kernel: Option<PathBuf>,
    /// Linux guest: the initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
}

/// `lacuna receive`
#[derive(Clone, Debug, Args)]
pub struct ReceiveArgs {
    /// Where to listen: tcp:HOST:PORT, unix:PATH, vsock:any:PORT or fd:NUMBER. All addresses of HOST are used; `[::]` means
    /// all addresses of this machine; with port 0 the kernel chooses the port. fd:NUMBER is a listening socket that this
    /// command was started with, fd:NUMBER,NUMBER... are connected ones.
    /// file:PATH or file:PATH,offset=N restores the guest of a snapshot file, as often as is wanted. Run only one copy of a
    /// guest that uses disks or a network
    pub address: Target,
    /// Octal permission bits of the file unix:PATH: who may send a guest [default: 600]
    #[arg(long, value_name = "MODE", value_parser = access::mode)]
    pub socket_mode: Option<Mode>,
    /// Group of the file unix:PATH, by name or number
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    pub socket_group: Option<Gid>,
    /// Which sources may come, and what this side shows them.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// The machine to receive into.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Take memory of the host for all of the guest's memory before a guest is waited for. It then arrives faster; the host
    /// needs memory for what the guest does not use, too. Of no use for a local hand-over: that guest brings its memory with it,
    /// and this memory is given back to the host then
    #[arg(long)]
    pub populate: bool,
    /// Restore from a file: run the guest at once, and read its memory while it runs. It needs the right to handle page faults:
    /// access to /dev/userfaultfd, or the sysctl vm.unprivileged_userfaultfd = 1. Its balloon device waits until all memory is
    /// here
    #[arg(long, conflicts_with = "populate")]
    pub lazy: bool,
    /// With --lazy: how fast memory is read that the guest does not wait for: off, megabytes a second, or max [default: max]
    #[arg(long, value_name = "PACE", requires = "lazy")]
    pub prefault: Option<Prefault>,
    /// With --lazy: write down, in FILE.touched beside the snapshot, in which order the guest touches its pages. The next lazy
    /// restores load these first. The default pace is off then
    #[arg(long, requires = "lazy")]
    pub record: bool,
    /// Restore from a file: threads that read it; with --lazy, threads that answer the guest's page faults [default: as many as
    /// there are processors; with --lazy 2]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Keep the guest stopped after it has arrived, until `lacuna cont`
    #[arg(long)]
    pub hold: bool,
    /// For file:PATH: whether memory is read without the page cache. With --lazy it is read through it
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t)]
    pub direct_io: DirectIoName,
}

/// A machine: its guest, its balloon device, its sockets and its console.
#[derive(Clone, Debug, Args)]
pub struct MachineArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// vhost-user socket of the balloon device; without this flag the guest has no balloon
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub balloon: Option<PathBuf>,
    /// Control socket of the balloon device, to ask for hints
    #[arg(long, value_name = "SOCKET", requires = "balloon", value_parser = socket_path())]
    pub balloon_control: Option<PathBuf>,
    /// How KVM logs what the guest writes during a migration. The two sides may differ
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub dirty_log: DirtyLogName,
    /// Agent socket of the balloon device. The guest gets a virtio-console port, org.lacuna.agent.0, which is connected
    /// to this socket and which the agent of a Linux guest uses
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub agent_socket: Option<PathBuf>,
    /// Control socket of this machine: where it takes commands (status, migrate, cancel and others)
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// Octal permission bits of the control socket: who may give commands [default: 600]
    #[arg(long, value_name = "MODE", value_parser = access::mode)]
    pub control_mode: Option<Mode>,
    /// Group of the control socket, by name or number
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    pub control_group: Option<Gid>,
    /// Seconds for which the machine at the other end of a migration may be silent before the connection counts as broken. Each side says
    /// every half second that it is alive, however slow it is
    #[arg(long, value_name = "SECONDS", default_value = PEER_TIMEOUT, value_parser = peer_timeout)]
    pub peer_timeout: Duration,
    /// Unix socket to serve metrics of the machine and its migration on, in the text format of Prometheus over HTTP. --control-mode and
    /// --control-group count for it, too
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub metrics_socket: Option<PathBuf>,
    /// File for the guest's console output; without this flag it goes to standard error. The guest never waits for a
    /// slow reader: of the output that nobody has read yet, only the last MiB is kept
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Where the machine records its trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// The guest and its size. Source and destination must be given the same values.
#[derive(Clone, Debug, Args)]
pub struct GuestArgs {
    /// The guest to run
    #[arg(id = "guest", long, value_name = "GUEST", value_enum, default_value_t)]
    pub kind: GuestKind,
    /// Guest memory, in bytes or with the unit K, M, G or T (as every SIZE here)
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    pub memory: Size,
    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub vcpus: u8,
}

/// How KVM logs the guest's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DirtyLogName {
    /// A bit for each page of memory
    #[default]
    Bitmap,
    /// A ring for each processor of the guest, in which KVM writes the pages that this processor writes
    Ring,
}

impl From<DirtyLogName> for DirtyLogKind {
    fn from(name: DirtyLogName) -> Self {
        match name {
            DirtyLogName::Bitmap => Self::Bitmap,
            DirtyLogName::Ring => Self::Ring(RING_ENTRIES),
        }
    }
}

/// What the guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GuestKind {
    /// A bare-metal guest that is part of this program: it starts in milliseconds and checks all its memory.
    #[default]
    Bare,
    /// A stock Debian Linux kernel with its own virtio_balloon driver.
    Linux,
}

/// What the guest does with its memory.
#[derive(Clone, Debug, Args)]
pub struct WorkloadArgs {
    /// Memory that stays in use
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub in_use: Size,
    /// Memory that is written once and then freed
    #[arg(long, value_name = "SIZE", default_value = "1536M")]
    pub freed: Size,
    /// Linux guest: memory that is written and of which every second page is then freed, so that free memory is in
    /// pieces of one page
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub fragment: Size,
    /// Bytes a second that the guest writes to memory in use
    #[arg(long, value_name = "SIZE", default_value = "20M")]
    pub dirty_rate: Size,
    /// Pages a second that the guest frees and allocates again
    #[arg(long, value_name = "PAGES", default_value_t = 256)]
    pub churn: u64,
    /// Seed of the guest's random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// When the bare guest reuses pages that it has hinted
    #[arg(long, value_enum, default_value_t)]
    pub hold: Hold,
    /// How the bare guest answers requests for hints
    #[arg(long, value_enum, default_value_t)]
    pub answer: Answering,
    /// Bare guest: write and check nothing once memory is filled and partly freed
    #[arg(long)]
    pub idle: bool,
    /// More kernel arguments for a Linux guest. For example, with init_on_alloc=0 its balloon driver hints memory
    /// without first writing zeros to it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub append: String,
}

/// See [`spec::bare::HoldPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Hold {
    /// After the device has said that hinting is over
    #[default]
    UntilDone,
    /// As soon as it needs a page, without telling the device
    Early,
}

/// See [`spec::bare::AnswerPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Answering {
    /// At once, as a good driver does
    #[default]
    Prompt,
    /// Never
    Silent,
    /// 5 seconds after it was asked
    Late,
    /// At once, but it hints only 10 MB of memory a second
    Slow,
    /// At once, and then it hints the same pages again for ever
    Flood,
}
