// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line: every flag of every job.

mod bench;
mod bench_file;
mod bench_postcopy;
mod convergence;
mod convert;
mod cut;
mod dirty_rate;
mod generate;
mod kill;
mod machine;
mod migration;
mod reconcile;
mod serve;
mod suite;
mod target;
mod tls;
pub(crate) mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::bench::{ArmName, BenchArgs, BenchJob, ContentKind, TransportArgs};
pub use self::bench_file::FileArgs;
pub use self::bench_postcopy::{PostcopyArgs, PostcopyArm};
pub use self::convergence::{ConvergenceArgs, SetArgs};
pub use self::convert::{ConvertArgs, Converted, ImageLayout};
pub use self::cut::{Cut, CutKind};
pub use self::dirty_rate::DirtyRateArgs;
pub use self::generate::{GenerateArgs, Generated, ProgramName};
pub use self::kill::{Kill, KilledSide};
pub use self::machine::{
    Answering, DirtyLogName, GuestArgs, GuestKind, Hold, MachineArgs, ReceiveArgs, RunArgs,
    WorkloadArgs,
};
pub use self::migration::{
    CompareArgs, ComparedTransport, MigrationArgs, RestoreKind, SendArgs, Transport,
};
pub use self::reconcile::ReconcileArgs;
pub use self::serve::ServeArgs;
pub use self::suite::SuiteArgs;
pub use self::target::{Target, snapshot_at};
pub use self::tls::TlsArgs;
use self::values::socket_path;
use crate::balloon::args::BalloonArgs;
use crate::trace::TraceJob;

const MORE: &str = "\
A SIZE is a whole number of bytes, or a whole number with the unit K, M, G or T (powers of 1024), such as 512M.

Environment:
  RUST_LOG      log level on standard error: error, warn (default), info or debug
  LACUNA_CACHE  folder where downloaded kernels for Linux guests are kept
                [default: lacuna in $XDG_CACHE_HOME or ~/.cache]

Exit status:
  0  the job was done
  1  the job failed, or `compare` or `bench` found a wrong page; standard error says why
  2  the command line is wrong";

/// Live migration that never sends memory the guest does not use.
///
/// `lacuna compare` migrates a real guest with and without free page hints, checks every page at the
/// destination, and shows what the hints saved. The other jobs are its parts: `run` starts a guest,
/// `receive` waits for one, `balloon device` collects hints, and `send`, `status`, `set` and `cancel` control a
/// migration. `balloon` also controls a balloon device that is already running.
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
    Compare(Box<CompareArgs>),
    /// Measure how fast this machine moves memory, and how fast it could
    Bench(BenchArgs),
    /// Run a guest that can be migrated away
    Run(RunArgs),
    /// Wait for a guest, and run it when it has arrived
    Receive(ReceiveArgs),
    /// Migrate a running guest
    Send(SendArgs),
    /// Show what is in a snapshot file, and check every page of it
    Inspect(InspectArgs),
    /// Turn a snapshot file into a raw memory image, or an image into a snapshot file
    Convert(ConvertArgs),
    /// Make one snapshot of the two halves that a broken migration has left
    Reconcile(ReconcileArgs),
    /// Answer the page faults of a Firecracker that restores a guest, from a snapshot file or its own memory file
    Serve(ServeArgs),
    /// Show what a machine and its migration are doing
    Status(StatusArgs),
    /// Measure how fast a running guest writes, without a migration
    DirtyRate(DirtyRateArgs),
    /// Change how a running migration goes on
    Set(SetArgs),
    /// Hand the guest of a running migration over before its memory
    Postcopy(ControlArgs),
    /// Go on with a postcopy whose connection has broken
    Recover(RecoverArgs),
    /// Save what one side of a broken postcopy has left, for `lacuna reconcile`
    SaveHalf(SaveHalfArgs),
    /// Cancel a migration: the guest runs on where it is
    Cancel(ControlArgs),
    /// Let a received guest run: one held by --hold, or one whose hand-over was lost
    Cont(ContArgs),
    /// Let a stopped guest run on at the source: after a migration, or after a lost hand-over
    Resume(ResumeArgs),
    /// End a machine; with --end-guest its guest, too
    Quit(QuitArgs),
    /// Run the balloon device, set its target, show the guest's memory
    Balloon(BalloonArgs),
    /// Make, show or check a trace of what each part of a migration did
    Trace(TraceJobArgs),
    /// Write manual pages, shell completions, or certificates to try TLS with
    Generate(GenerateArgs),
}

/// `lacuna inspect`
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// The snapshot: PATH, file:PATH or file:PATH,offset=N
    pub file: String,
    /// Do not read the pages
    #[arg(long)]
    pub no_verify: bool,
    /// Also show which part of memory is in the file
    #[arg(long)]
    pub picture: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `lacuna status`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// Go on until the migration away from this machine has ended; wait for one if there was none. On a terminal this is a
    /// screen that changes, and elsewhere a line each second. The exit status is 1 if the migration does not complete
    #[arg(long)]
    pub follow: bool,
    /// Print JSON; with --follow an object a line: the events, and each second the status
    #[arg(long)]
    pub json: bool,
}

/// A job whose only argument is the machine.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
}

/// `lacuna recover`
///
/// First at the destination, which listens, then at the source, which connects. Both go on where they were: the destination says
/// what it has, and the source sends all else. A recovery that fails can be tried again.
///
/// Where the source had to end and has left its half in a file (`lacuna save-half`), the destination goes on with that:
/// `lacuna recover file:PATH`. The guest is not started anew; it gets each page when it needs it, or before.
#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    /// Where the destination listens: tcp:HOST:PORT, unix:PATH or vsock:CID:PORT. It need not be the address of the migration. At
    /// the destination also file:PATH or file:PATH,offset=N: the half that the source has saved
    pub address: String,
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
}

/// `lacuna save-half`
///
/// For a postcopy whose connection has broken, where one side cannot wait for it to come back. The source saves all that the
/// destination may lack, and serves nobody any more. The destination stops the guest and saves it as far as it is there; it never runs
/// there again. `lacuna reconcile` makes one snapshot of both files.
#[derive(Clone, Debug, Args)]
pub struct SaveHalfArgs {
    /// The file to write: PATH, file:PATH or file:PATH,offset=N
    pub file: String,
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `lacuna cont`
#[derive(Clone, Debug, Args)]
pub struct ContArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET")]
    pub control: PathBuf,
    /// Decide that the guest belongs to this destination. For a hand-over during which the link died, when `status` of
    /// this destination shows `undecided`. First make sure that the source shows `undecided`, too, or has ended:
    /// otherwise the guest runs in two places and destroys its disks
    #[arg(long)]
    pub destination_owns: bool,
}

/// `lacuna resume`
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET")]
    pub control: PathBuf,
    /// Decide that the guest belongs to this source. For a hand-over during which the link died, when `status` of this
    /// source shows `undecided`. First make sure that the destination has ended, or end it: otherwise the guest runs in
    /// two places and destroys its disks. It is not enough that the guest does not run there now, because the hand-over
    /// may still be on its way
    #[arg(long)]
    pub source_owns: bool,
}

/// `lacuna quit`
#[derive(Clone, Debug, Args)]
pub struct QuitArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// End the guest, too. Without this flag a machine that has a guest refuses to end
    #[arg(long)]
    pub end_guest: bool,
}

/// `lacuna trace`
#[derive(Clone, Debug, Args)]
pub struct TraceJobArgs {
    /// What to do
    #[command(subcommand)]
    pub job: TraceJob,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_help_lists_flags_of_tls_apart_and_no_others_with_them() {
        for job in ["send", "receive"] {
            let command = Cli::command();
            let job = command.find_subcommand(job).unwrap();
            for flag in job.get_opts() {
                let of_tls = flag.get_id().as_str().starts_with("tls_");
                assert_eq!(
                    of_tls,
                    flag.get_help_heading() == Some(tls::HEADING),
                    "{flag}"
                );
            }
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
