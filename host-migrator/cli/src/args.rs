// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line: every flag of every job.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use host_migrator::wire::{Address, LONGEST_SOCKET_PATH};
use host_migrator::{EARLY_HARVESTS, PageSource};
use rustix::fs::{Gid, Mode};
use spec::PAGE_SIZE;
use spec_sockets::access;

use crate::balloon::args::BalloonArgs;
use crate::control::{HintMode, MigrateArguments};
use crate::size::{Size, SizeError};
use crate::trace::{TraceArgs, TraceJob};

const MORE: &str = "\
Sizes are whole numbers of bytes, or of K, M, G or T (powers of 1024), as in 512M.

Environment:
  RUST_LOG      what is logged to standard error: error, warn (default), info or debug
  LACUNA_CACHE  folder for the kernels of Linux guests, which are fetched once
                [default: lacuna in $XDG_CACHE_HOME or ~/.cache]

Exit status:
  0  if the job is done
  1  if it failed, or `compare` found a wrong page; standard error says why
  2  for a wrong command line";

/// Live migration that never sends memory the guest does not use.
///
/// `lacuna compare` migrates a real guest with and without free page hints, proves that no byte was lost
/// and shows what the hints were worth. The other jobs are its parts: a guest (`run`), a place for it to
/// go (`receive`), the balloon device that collects hints (`balloon device`), and the commands that move
/// it (`send`, `status`, `cancel`). `balloon` also looks after any running balloon device.
#[derive(Debug, Parser)]
#[command(
    name = "lacuna",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_long_help = MORE
)]
pub struct Cli {
    /// The job.
    #[command(subcommand)]
    pub job: Job,
}

/// One job each.
#[derive(Debug, Subcommand)]
pub enum Job {
    /// Migrate a real guest with and without hints and show the difference
    Compare(CompareArgs),
    /// Run a guest that can be migrated away
    Run(RunArgs),
    /// Wait for a guest, and run it when it has arrived
    Receive(ReceiveArgs),
    /// Migrate a running guest
    Send(SendArgs),
    /// Show what a machine and its migration are doing
    Status(StatusArgs),
    /// Cancel a migration: the guest runs on where it is
    Cancel(ControlArgs),
    /// Let a machine that was received with --hold run, or that has a guest whose hand-over was lost
    Cont(ContArgs),
    /// Let a guest run on at the source that a migration has left standing, or whose hand-over was lost
    Resume(ResumeArgs),
    /// End a machine; its guest only with --end-guest
    Quit(QuitArgs),
    /// The balloon: run the device, set its target, look at the guest's memory
    Balloon(BalloonArgs),
    /// Traces: what the parts of a migration did, and whether the rule allows it
    Trace(TraceJobArgs),
    /// Write the manual pages or the completions of a shell
    Generate(GenerateArgs),
}

/// What the guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GuestKind {
    /// A bare-metal guest that comes with this program: starts in milliseconds, checks all its memory.
    #[default]
    Bare,
    /// A stock Debian Linux kernel with its own virtio_balloon driver.
    Linux,
}

/// The guest and its size; source and destination must agree on them.
#[derive(Clone, Debug, Args)]
pub struct GuestArgs {
    /// Which guest
    #[arg(id = "guest", long, value_name = "GUEST", value_enum, default_value_t)]
    pub kind: GuestKind,
    /// Guest memory: bytes, or with a suffix K, M, G or T (as every SIZE here)
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    pub memory: Size,
    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub vcpus: u8,
}

/// A machine with its guest and its outlets.
#[derive(Clone, Debug, Args)]
pub struct MachineArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// vhost-user socket of the balloon device; without it the guest has no balloon
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub balloon: Option<PathBuf>,
    /// Control socket of the balloon device: where hints are asked for
    #[arg(long, value_name = "SOCKET", requires = "balloon", value_parser = socket_path())]
    pub balloon_control: Option<PathBuf>,
    /// Agent socket of the balloon device: a port of the guest, named org.lacuna.agent.0, is connected to it, for
    /// the agent of a Linux guest; without it there is no such port
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub agent_socket: Option<PathBuf>,
    /// Where this machine listens for commands (status, migrate, cancel ...)
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// Who may give it commands, as octal permission bits of the socket's file [default: 600]
    #[arg(long, value_name = "MODE", value_parser = access::mode)]
    pub control_mode: Option<Mode>,
    /// The group of the control socket's file, by name or number
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    pub control_group: Option<Gid>,
    /// File for the guest's console; without it the console goes to standard error. The guest does not wait for whoever
    /// reads it: what is not read is lost, but for the last MiB
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Where it records what it does.
    #[command(flatten)]
    pub trace: TraceArgs,
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
    /// Linux guest: memory that is then written, and of which every second page is freed and the others stay
    /// in use, so that free memory lies in pieces of one page
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub fragment: Size,
    /// Bytes a second that the guest keeps writing to memory in use
    #[arg(long, value_name = "SIZE", default_value = "20M")]
    pub dirty_rate: Size,
    /// Pages a second that the guest frees and takes again
    #[arg(long, value_name = "PAGES", default_value_t = 256)]
    pub churn: u64,
    /// Seed of the guest's random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// When the bare guest uses hinted pages again
    #[arg(long, value_enum, default_value_t)]
    pub hold: Hold,
    /// How the bare guest answers requests for hints
    #[arg(long, value_enum, default_value_t)]
    pub answer: Answering,
    /// More arguments for the kernel of a Linux guest, such as init_on_alloc=0: its balloon driver then hints memory
    /// without writing zeros to it first
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub append: String,
}

/// See [`spec::bare::HoldPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Hold {
    /// When it is told that hinting is over
    #[default]
    UntilDone,
    /// At once when it needs a page, without telling anyone
    Early,
}

/// See [`spec::bare::AnswerPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Answering {
    /// As a good driver does
    #[default]
    Prompt,
    /// Never
    Silent,
    /// As a good driver does, 5 seconds after it was asked
    Late,
    /// At 10 MB of memory a second
    Slow,
    /// As a good driver does, and then the same pages again without end
    Flood,
}

/// `lacuna run`
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The guest and its memory.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// What it does.
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
    /// Where to listen: tcp:HOST:PORT (at all addresses of HOST; `[::]` is all of this machine; port 0: any) or unix:PATH
    pub address: Address,
    /// Who may send a guest to unix:PATH, as octal permission bits of the socket's file [default: 600]
    #[arg(long, value_name = "MODE", value_parser = access::mode)]
    pub socket_mode: Option<Mode>,
    /// The group of that socket's file, by name or number
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    pub socket_group: Option<Gid>,
    /// The machine to receive into.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// When the guest has arrived, hold it until `lacuna cont`
    #[arg(long)]
    pub hold: bool,
}

/// How to migrate.
#[derive(Clone, Debug, Args)]
pub struct MigrationArgs {
    /// How long the guest may stand still at the end, in milliseconds
    #[arg(long, value_name = "MS", default_value = "300", value_parser = milliseconds)]
    pub downtime_limit: Duration,
    /// How long the switchover may take, in milliseconds: after that the guest runs on at the source, whatever the
    /// destination does. Without it twice the downtime that is expected, or the downtime limit, and five seconds
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub switchover_timeout: Option<Duration>,
    /// Bytes a second (or with a suffix K, M, G or T) to send at most; without it as fast as the link goes
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    pub max_bandwidth: Option<Size>,
    /// How often a round looks, before it ends, which pages the guest has written: one that was written before
    /// it was copied is then not sent again for it. Each look costs the guest a fault for every page that it goes
    /// on writing; 0 looks only when a round ends
    #[arg(long, value_name = "N", default_value_t = EARLY_HARVESTS)]
    pub early_harvests: u32,
    /// Stop the guest after N rounds, however long the rest takes then: so the migration of a guest that writes
    /// faster than the link sends comes to an end. Without it rounds go on until the downtime limit can be kept
    #[arg(long, value_name = "N")]
    pub max_rounds: Option<NonZeroU32>,
}

impl MigrationArgs {
    /// The command's arguments for a migration to `uri` like this; all else has its default.
    #[must_use]
    pub fn to(&self, uri: String) -> MigrateArguments {
        MigrateArguments {
            max_bandwidth: self.max_bandwidth.map(|size| size.0),
            downtime_limit: self.downtime_limit.as_millis() as u64,
            switchover_timeout: self.switchover_timeout.map(|time| time.as_millis() as u64),
            early_harvests: self.early_harvests,
            max_rounds: self.max_rounds,
            ..MigrateArguments::to(uri)
        }
    }
}

/// `lacuna send`
#[derive(Clone, Debug, Args)]
pub struct SendArgs {
    /// Where to: tcp:HOST:PORT or unix:PATH
    pub address: Address,
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// How.
    #[command(flatten)]
    pub migration: MigrationArgs,
    /// Which knowledge of free pages to use
    #[arg(long, value_enum, default_value_t)]
    pub hints: HintMode,
    /// Of this knowledge, the sources that are used
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = page_source(), default_value = "driver,agent,holes,balloon,reported,zero", long_help = SOURCES_HELP)]
    pub sources: Vec<PageSource>,
    /// Do not wait for the end
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

/// `lacuna status`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Jobs that only need to know which machine.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
}

/// `lacuna cont`
#[derive(Clone, Debug, Args)]
pub struct ContArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET")]
    pub control: PathBuf,
    /// The link died in the hand-over, and `status` of this destination shows `undecided`: you know that the guest is
    /// this machine's, because the source shows `undecided`, too, or has ended. If that is wrong the guest runs in two
    /// places, and destroys its disks
    #[arg(long)]
    pub destination_owns: bool,
}

/// `lacuna resume`
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET")]
    pub control: PathBuf,
    /// The link died in the hand-over, and `status` of this source shows `undecided`: you know that the guest is this
    /// machine's, because the destination has ended, or you have ended it. That it does not run there is not enough: the
    /// last word may still be on its way. If that is wrong the guest runs in two places, and destroys its disks
    #[arg(long)]
    pub source_owns: bool,
}

/// `lacuna quit`
#[derive(Clone, Debug, Args)]
pub struct QuitArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// End the guest, too, if it is here. Without this a machine that has a guest refuses
    #[arg(long)]
    pub end_guest: bool,
}

/// `lacuna compare`
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
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
    /// The sources that mode `on` uses; `holes` uses those of them that ask no guest
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = page_source(), default_value = "driver,holes,balloon,reported,zero", long_help = SOURCES_HELP)]
    pub sources: Vec<PageSource>,
    /// Runs of each mode; run N has seed + N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Have every part record what it does, and hold that against the rule after each run
    #[arg(long)]
    pub check_trace: bool,
    /// What the migration goes over
    #[arg(long, value_enum, default_value_t)]
    pub transport: Transport,
    /// Write a picture (SVG) of each mode's first run: which part of guest memory each round sent, sent in vain, or
    /// skipped
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// Print one JSON object a run instead of the table, and no picture
    #[arg(long)]
    pub json: bool,
    /// Test builds: a clause of the rule to switch off (may be repeated)
    #[cfg(clause_switches)]
    #[arg(long, value_name = "CLAUSE")]
    pub switch_off: Vec<String>,
}

/// What a comparison migrates over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// TCP over the loopback device
    #[default]
    Tcp,
    /// A unix socket
    Unix,
}

/// `lacuna trace`
#[derive(Clone, Debug, Args)]
pub struct TraceJobArgs {
    /// What to do
    #[command(subcommand)]
    pub job: TraceJob,
}

/// `lacuna generate`
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// What to write
    #[command(subcommand)]
    pub what: Generated,
}

/// What can be generated from the command line's definition.
#[derive(Clone, Debug, Subcommand)]
pub enum Generated {
    /// Manual pages: one a job, and one of vhost-device-balloon
    Man {
        /// Folder to write them to
        folder: PathBuf,
    },
    /// Completions for a shell, on standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
        /// Of which program
        #[arg(long, value_name = "NAME", default_value = "lacuna")]
        program: ProgramName,
    },
}

/// The programs whose command lines are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgramName {
    /// This one
    Lacuna,
    /// The balloon device's daemon
    VhostDeviceBalloon,
}

const SOURCES_HELP: &str = "\
Sources of \"this page need not be sent\", joined by commas: of what --hints allows, these are used.

driver    the balloon driver's free page hints, blocks of 4 MiB on x86-64
agent     the page flags of the guest's kernel, told by its agent page by page (Linux guest only)
holes     holes of the memory file that were never touched
balloon   holes because the page is in the balloon
reported  holes because the guest reported the page to be free
zero      pages that are read and found to be zero; without this source they are sent like others";

/// Takes the names of sources, and says which there are.
fn page_source() -> impl TypedValueParser<Value = PageSource> {
    PossibleValuesParser::new(PageSource::ALL.map(PageSource::name))
        .try_map(|name| name.parse::<PageSource>())
}

/// Takes the path of a socket, if the kernel can.
pub(crate) fn socket_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str().len() {
        0..=LONGEST_SOCKET_PATH => Ok(path),
        length => Err(format!(
            "a socket's path has at most {LONGEST_SOCKET_PATH} bytes, and this one has {length}: \
             take a shorter one, or one that is relative to the current folder"
        )),
    })
}

/// Reads a bandwidth limit.
fn bandwidth(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: SizeError| error.to_string())?;
    if size.0 < PAGE_SIZE {
        let advice = "leave the option out to send as fast as the link goes";
        return Err(format!("{size} a second is less than a page: {advice}"));
    }
    Ok(size)
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(Duration::from_millis)
        .map_err(|_| format!("'{text}' is no number of milliseconds"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
