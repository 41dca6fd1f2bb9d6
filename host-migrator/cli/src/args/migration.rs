// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of a migration: `lacuna send` and `lacuna compare`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use host_migrator::paging::Prefault;
use host_migrator::{EARLY_HARVESTS, MAX_CHANNELS, PageSource, PostcopyStart, ZstdLevel};

use super::convergence::ConvergenceArgs;
use super::cut::Cut;
use super::kill::Kill;
use super::machine::{DirtyLogName, GuestArgs, WorkloadArgs};
use super::suite::SuiteArgs;
use super::target::Target;
use super::tls::{HEADING, TlsArgs};
use super::values::{
    PEER_TIMEOUT, SOURCES_HELP, bandwidth, milliseconds, page_source, peer_timeout, socket_path,
};
use crate::control::{CompressionName, DirectIoName, HintMode, MigrateArguments};
use crate::size::Size;

/// `lacuna send`
#[derive(Clone, Debug, Args)]
pub struct SendArgs {
    /// Where to: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT or fd:NUMBER. fd:NUMBER is a connected socket that this command was
    /// started with; with fd:NUMBER,NUMBER... the first is the control connection, and each other one carries a channel.
    /// file:PATH saves the guest into a snapshot file, which replaces PATH when it is complete, and the guest runs on here;
    /// file:PATH,offset=N writes into the file or block device PATH at byte N
    pub address: Target,
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// How to migrate.
    #[command(flatten)]
    pub migration: MigrationArgs,
    /// What this side shows the destination, and whom it trusts. The machine reads the files.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// The host name or address that the destination's certificate must be for [default: HOST of the address]
    #[arg(
        long,
        value_name = "NAME",
        requires = "tls_certificate",
        help_heading = HEADING
    )]
    pub tls_hostname: Option<String>,
    /// What may be used to find pages that need not be sent
    #[arg(long, value_enum, default_value_t)]
    pub hints: HintMode,
    /// Sources to use, of those that --hints allows
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = page_source(), default_value = "driver,agent,holes,balloon,reported,zero", long_help = SOURCES_HELP)]
    pub sources: Vec<PageSource>,
    /// The destination is on this host, at a unix socket: give it the memory itself instead of sending pages. The downtime then
    /// does not depend on the size of memory. Limits, channels, compression, rounds and hints mean nothing
    #[arg(long)]
    pub local: bool,
    /// For file:PATH: keep the guest stopped after it was saved, until `lacuna cont`
    #[arg(long)]
    pub hold: bool,
    /// Start the migration and do not wait for its end
    #[arg(long)]
    pub detach: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Test builds: a clause of the rule to switch off (may be repeated)
    #[cfg(clause_switches)]
    #[arg(long, value_name = "CLAUSE")]
    pub switch_off: Vec<String>,
}

/// `lacuna compare`
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Many scenarios instead of one.
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// What the guest does.
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// How to migrate.
    #[command(flatten)]
    pub migration: MigrationArgs,
    /// The modes to compare
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "off,holes,on"
    )]
    pub hints: Vec<HintMode>,
    /// Sources that mode `on` uses; mode `holes` uses those of them that do not ask the guest
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = page_source(), default_value = "driver,holes,balloon,reported,zero", long_help = SOURCES_HELP)]
    pub sources: Vec<PageSource>,
    /// Runs of each mode; run N uses the seed plus N
    /// [default: 1, or what the suite says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: Option<u32>,
    /// How KVM logs what the guest writes
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub dirty_log: DirtyLogName,
    /// How long the guest works before it is migrated, in milliseconds. What the bare guest sees of it, as gaps in which it did not run,
    /// is shown beside what it sees of its migration
    #[arg(long, value_name = "MS", default_value = "1000", value_parser = milliseconds)]
    pub settle: Duration,
    /// Record a trace of every part, and check it against the rule after each run
    #[arg(long)]
    pub check_trace: bool,
    /// Transport of the migration stream
    #[arg(long, value_enum, default_value_t)]
    pub transport: ComparedTransport,
    /// With --transport file: the snapshot file; that of the last run is left there. Default: a temporary one, in the folder for
    /// temporary files ($TMPDIR)
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// With --transport file: how the guest comes out of the file
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub restore: RestoreKind,
    /// With --restore lazy: how fast memory is read that the guest does not wait for: off, megabytes a second, or max [default: max]
    #[arg(long, value_name = "PACE")]
    pub prefault: Option<Prefault>,
    /// With --postcopy: break the connection so many milliseconds after the guest was handed over, or after the last recovery, and
    /// recover on both sides (may be repeated). HOW is what the machines see: close (the default) or reset, on both sides;
    /// half-source or half-destination, where one side sees the other's end and is still heard; or silence, of which nobody is told,
    /// and which a side notices after --peer-timeout
    #[arg(long, value_name = "MS[:HOW]", requires = "postcopy")]
    pub cut: Vec<Cut>,
    /// With --postcopy: also kill a machine. So many milliseconds (20) after the hand-over the connection breaks for good. SIDE, source or
    /// destination, saves its half and is killed. The destination of a source that was killed goes on with that file; where
    /// the destination was killed, the source saves its half, too, and a guest is made of both. In JSON as killed: how it ended
    /// (file or reconciled; completed if all memory had come), and how many pages were compared and wrong
    #[arg(long, value_name = "SIDE[:MS]", requires = "postcopy")]
    pub kill: Option<Kill>,
    /// Seconds for which one machine may hear nothing of the other before it takes the connection for broken
    #[arg(long, value_name = "SECONDS", default_value = PEER_TIMEOUT, value_parser = peer_timeout)]
    pub peer_timeout: Duration,
    /// Encrypt the migrations with TLS, with certificates that are made for it
    #[arg(long)]
    pub tls: bool,
    /// Write a picture (SVG) of each mode's first run: which pages of the guest each round sent, sent in vain, or
    /// skipped
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// Print one JSON object for each run instead of the table and the picture
    #[arg(long)]
    pub json: bool,
    /// Test builds: a clause of the rule to switch off (may be repeated)
    #[cfg(clause_switches)]
    #[arg(long, value_name = "CLAUSE")]
    pub switch_off: Vec<String>,
}

/// The transport of a benchmark's migrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// TCP over the loopback device
    #[default]
    Tcp,
    /// A unix socket
    Unix,
}

/// How the guests of a comparison are migrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ComparedTransport {
    /// In pages, over TCP and the loopback device
    #[default]
    Tcp,
    /// In pages, over a unix socket
    Unix,
    /// With the memory itself, over a unix socket. The guest is not asked for hints, so there is one mode
    Local,
    /// In pages, into a snapshot file, from which the guest is restored
    File,
}

/// How a guest comes out of a snapshot file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RestoreKind {
    /// All of its memory is read before it runs
    #[default]
    Eager,
    /// It runs before its memory is read. It is restored twice: held until all memory is there, so that every page can be compared;
    /// and running, so that its page faults can be counted while it checks its memory
    Lazy,
}

/// How to migrate.
#[derive(Clone, Debug, Args)]
pub struct MigrationArgs {
    /// Greatest downtime, in milliseconds: how long the guest may be stopped at the end
    #[arg(long, value_name = "MS", default_value = "300", value_parser = milliseconds)]
    pub downtime_limit: Duration,
    /// Greatest time of the switchover, in milliseconds. If it takes longer, the migration fails and the guest runs on
    /// at the source. Default: five seconds more than twice the expected downtime or than the downtime limit, whichever
    /// is more
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub switchover_timeout: Option<Duration>,
    /// Greatest bandwidth, in bytes a second; without this flag the migration uses all that the link has
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    pub max_bandwidth: Option<Size>,
    /// Channels that carry the memory beside the control connection, 1 to 128; with 1 everything goes over one connection.
    /// For file:PATH: threads that write memory into the file, at most 1 MiB at a time each. Default: 2 where the host has two processors or more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CHANNELS)))]
    pub multifd_channels: Option<u32>,
    /// How memory is compressed on its way. Up to 1 MiB is compressed at a time; what does not get smaller by an eighth is sent as
    /// it is. Compression makes a migration faster where the link is slower than compression: each channel compresses about 0.3 to
    /// 1 GB a second, depending on what is in memory. On a faster link it makes the migration and its downtime longer
    #[arg(long, value_enum, value_name = "METHOD", default_value_t)]
    pub multifd_compression: CompressionName,
    /// Level of zstd, 1 to 20. Higher levels make memory smaller and take longer. Default: 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(i64::from(ZstdLevel::MIN.get())..=i64::from(ZstdLevel::MAX.get())))]
    pub multifd_zstd_level: Option<u8>,
    /// For file:PATH: whether memory is written without the page cache
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t)]
    pub direct_io: DirectIoName,
    /// How many times a round harvests the dirty log before the round ends. A page that the guest wrote before the round
    /// copied it is then not sent again for that write. Each harvest costs the guest one fault for every page that it
    /// writes again. With 0 the log is harvested only between rounds
    #[arg(long, value_name = "N", default_value_t = EARLY_HARVESTS)]
    pub early_harvests: u32,
    /// Stop the guest after N rounds, even if the downtime limit is then exceeded. This ends the migration of a guest
    /// that writes faster than the link sends. Without this flag rounds go on until the downtime limit can be kept
    #[arg(long, value_name = "N")]
    pub max_rounds: Option<NonZeroU32>,
    /// Into a file: seconds for which a guest that is still telling what is free may go on when all else is written, so that the file
    /// becomes smaller. Default: for as long as it has taken until then, if at its pace the guest is expected to end by then
    #[arg(long, value_name = "SECONDS")]
    pub wait_for_hints: Option<u32>,
    /// Hand the guest over before its memory: at-once; after N rounds; when-stalled, if the migration would not end otherwise, of what
    /// --max-guest-slowdown, --downtime-limit-max and --deadline allow; or on-command, only when `lacuna postcopy` says so (which may also come
    /// before N rounds and before a stall). It runs at the destination then, and each page comes when it is touched, or before; the
    /// guest's hints say which pages need not come. From then on the guest needs both hosts, until all of its memory is there. Without this flag
    /// all memory is sent before
    #[arg(long, value_name = "WHEN")]
    pub postcopy: Option<PostcopyStart>,
    /// Greatest bandwidth after such a hand-over for memory that the guest does not wait for, in bytes a second
    #[arg(long, value_name = "SIZE", value_parser = bandwidth, requires = "postcopy")]
    pub max_postcopy_bandwidth: Option<Size>,
    /// How the migration of a busy guest comes to an end.
    #[command(flatten)]
    pub convergence: ConvergenceArgs,
}

impl MigrationArgs {
    /// The arguments of the command for a migration to `uri` with these flags, and defaults for the rest.
    #[must_use]
    pub fn to(&self, uri: String) -> MigrateArguments {
        MigrateArguments {
            max_bandwidth: self.max_bandwidth.map(|size| size.0),
            downtime_limit: self.downtime_limit.as_millis() as u64,
            switchover_timeout: self.switchover_timeout.map(|time| time.as_millis() as u64),
            multifd_channels: self.multifd_channels,
            multifd_compression: self.multifd_compression,
            multifd_zstd_level: self.multifd_zstd_level,
            direct_io: self.direct_io,
            early_harvests: self.early_harvests,
            max_rounds: self.max_rounds,
            wait_for_hints: self.wait_for_hints,
            postcopy: self.postcopy,
            max_postcopy_bandwidth: self.max_postcopy_bandwidth.map(|size| size.0),
            ..MigrateArguments::to(uri)
        }
        .tuned(self.convergence.tuning())
    }
}
