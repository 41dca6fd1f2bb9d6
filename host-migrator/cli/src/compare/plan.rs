// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The plan of one run: which guest is migrated how, as arguments of the processes that do it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use host_migrator::paging::Prefault;
use host_migrator::report::trace::DEFAULT_SLOTS;
use host_migrator::{PageSource, PageSources};

use super::CompareError;
use super::early;
use super::file;
use super::parts::AgentPort;
use crate::args::{
    CompareArgs, ComparedTransport, Cut, DirtyLogName, GuestArgs, GuestKind, Kill, MigrationArgs,
    RestoreKind, WorkloadArgs,
};
use crate::certificates::{self, Certificates};
use crate::control::{Command, HintMode, MigrateArguments};
use crate::nested;
use crate::size::Size;
use crate::trace::TraceArgs;

/// What the destination's certificate is for, in a migration with TLS.
const HOSTNAME: &str = "destination.lacuna";

/// The plan of one run.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// This program.
    pub(super) program: PathBuf,
    /// How long the guest works before it is migrated.
    pub(super) settle: Duration,
    dirty_log: DirtyLogName,
    pub(super) guest: GuestArgs,
    /// The workload; its seed is this run's.
    pub(super) workload: WorkloadArgs,
    pub(super) migration: MigrationArgs,
    pub(super) hints: HintMode,
    pub(super) sources: PageSources,
    pub(super) transport: ComparedTransport,
    /// The snapshot file, if one was named.
    file: Option<PathBuf>,
    pub(super) restore: RestoreKind,
    prefault: Option<Prefault>,
    tls: bool,
    /// When the connection breaks, and how.
    cuts: Vec<Cut>,
    pub(super) kill: Option<Kill>,
    /// How long one machine may hear nothing of the other.
    peer_timeout: Duration,
    check_trace: bool,
    map_rounds: bool,
    /// Kernel and initial RAM disk of a Linux guest.
    linux: Option<nested::GuestFiles>,
    #[cfg(clause_switches)]
    pub(super) switch_off: Vec<String>,
}

impl RunPlan {
    /// The plans of all runs that `args` asks for.
    ///
    /// # Errors
    /// [`CompareError`] if this program or the guest's kernel cannot be found.
    pub fn all(args: &CompareArgs) -> Result<Vec<Self>, CompareError> {
        let program = std::env::current_exe().map_err(|source| CompareError::Io {
            what: "cannot find this program",
            source,
        })?;
        let linux = match args.guest.kind {
            GuestKind::Bare => None,
            GuestKind::Linux => Some(nested::guest_files()?),
        };
        let migration = &args.migration;
        (migration.multifd_compression)
            .with_level(migration.multifd_zstd_level)
            .map_err(CompareError::Compression)?;
        let sources: PageSources = args.sources.iter().copied().collect();
        if args.guest.kind == GuestKind::Bare && sources.contains(PageSource::Agent) {
            return Err(CompareError::NoAgent);
        }
        file::check(args)?;
        early::check(args)?;
        // Lent memory is lent whole, whatever is known of it.
        let modes = match args.transport {
            ComparedTransport::Local => &[HintMode::Off],
            ComparedTransport::Tcp | ComparedTransport::Unix | ComparedTransport::File => {
                &args.hints[..]
            }
        };
        let mut plans = Vec::new();
        for run in 0..u64::from(args.runs.unwrap_or(1)) {
            for hints in modes {
                let mut workload = args.workload.clone();
                workload.seed = workload.seed.wrapping_add(run);
                plans.push(Self {
                    program: program.clone(),
                    settle: args.settle,
                    dirty_log: args.dirty_log,
                    guest: args.guest.clone(),
                    workload,
                    migration: args.migration.clone(),
                    hints: *hints,
                    sources,
                    transport: args.transport,
                    file: args.file.clone(),
                    restore: args.restore,
                    prefault: args.prefault,
                    tls: args.tls,
                    cuts: args.cut.clone(),
                    kill: args.kill,
                    peer_timeout: args.peer_timeout,
                    check_trace: args.check_trace,
                    map_rounds: args.picture.is_some() || !args.json,
                    linux: linux.clone(),
                    #[cfg(clause_switches)]
                    switch_off: args.switch_off.clone(),
                });
            }
        }
        Ok(plans)
    }

    /// Makes a new trace in `folder`, if traces are checked.
    pub(super) fn new_trace(&self, folder: &Path) -> Result<TraceArgs, CompareError> {
        let mut args = TraceArgs::default();
        if self.check_trace {
            let path = folder.join("trace");
            host_migrator::Trace::create(&path, DEFAULT_SLOTS).map_err(|source| {
                CompareError::Io {
                    what: "cannot make a trace",
                    source,
                }
            })?;
            args.trace = Some(path);
        }
        Ok(args)
    }

    /// The guest has a port for its agent if any mode asks the agent, because all modes migrate the same guest.
    pub(super) fn agent_port(&self) -> AgentPort {
        if self.sources.contains(PageSource::Agent) {
            AgentPort::Present
        } else {
            AgentPort::Absent
        }
    }

    fn machine_args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        push(&mut args, "--guest", name_of(self.guest.kind));
        push(&mut args, "--memory", bytes(self.guest.memory));
        push(&mut args, "--vcpus", self.guest.vcpus);
        push(&mut args, "--dirty-log", name_of(self.dirty_log));
        push(&mut args, "--peer-timeout", self.peer_timeout.as_secs());
        args
    }

    pub(super) fn run_args(&self) -> Vec<OsString> {
        let mut args = vec!["run".into()];
        args.extend(self.machine_args());
        push(&mut args, "--in-use", bytes(self.workload.in_use));
        push(&mut args, "--freed", bytes(self.workload.freed));
        push(&mut args, "--fragment", bytes(self.workload.fragment));
        push(&mut args, "--dirty-rate", bytes(self.workload.dirty_rate));
        push(&mut args, "--churn", self.workload.churn);
        push(&mut args, "--seed", self.workload.seed);
        push(&mut args, "--hold", name_of(self.workload.hold));
        push(&mut args, "--answer", name_of(self.workload.answer));
        if self.workload.idle {
            args.push("--idle".into());
        }
        push(&mut args, "--append", &self.workload.append);
        if let Some(files) = &self.linux {
            args.extend(["--kernel".into(), files.kernel.clone().into()]);
            args.extend(["--initrd".into(), files.initrd.clone().into()]);
        }
        args
    }

    /// Makes certificates in `folder`, if the migration is to be encrypted.
    pub(super) fn new_certificates(
        &self,
        folder: &Path,
    ) -> Result<Option<Certificates>, CompareError> {
        if !self.tls {
            return Ok(None);
        }
        let names = [HOSTNAME.to_owned()];
        Ok(Some(certificates::make(&folder.join("tls"), &names, 1)?))
    }

    /// The file that the guest goes into, if it goes into one.
    pub(super) fn snapshot(&self, folder: &Path) -> Result<Option<PathBuf>, CompareError> {
        match self.transport {
            ComparedTransport::File => file::path(self.file.as_deref(), folder).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) fn receive_args(
        &self,
        folder: &Path,
        snapshot: Option<&Path>,
        tls: Option<&Certificates>,
        hold: bool,
    ) -> Vec<OsString> {
        let address = match self.transport {
            ComparedTransport::File => snapshot.map(file::uri).unwrap_or_default(),
            ComparedTransport::Tcp => "tcp:127.0.0.1:0".into(),
            ComparedTransport::Unix | ComparedTransport::Local => {
                let mut address = OsString::from("unix:");
                address.push(folder.join("stream"));
                address
            }
        };
        let mut args = vec!["receive".into(), address];
        if hold {
            args.push("--hold".into());
        }
        args.extend(self.machine_args());
        if snapshot.is_some() {
            push(&mut args, "--direct-io", name_of(self.migration.direct_io));
        }
        if self.restore == RestoreKind::Lazy {
            args.push("--lazy".into());
        }
        if let Some(Certificates { destination, .. }) = tls {
            args.extend([
                "--tls-certificate".into(),
                destination.certificate.clone().into(),
            ]);
            args.extend(["--tls-key".into(), destination.key.clone().into()]);
            args.extend(["--tls-ca".into(), destination.ca.clone().into()]);
        }
        args
    }

    /// The destination whose guest runs when its memory was read from `snapshot`.
    pub(super) fn run_eagerly_args(&self, snapshot: &Path) -> Vec<OsString> {
        let mut args = vec!["receive".into(), file::uri(snapshot)];
        args.extend(self.machine_args());
        push(&mut args, "--direct-io", name_of(self.migration.direct_io));
        args
    }

    /// The destination whose guest runs before its memory was read from `snapshot`.
    pub(super) fn run_lazily_args(&self, snapshot: &Path) -> Vec<OsString> {
        let mut args = vec!["receive".into(), file::uri(snapshot), "--lazy".into()];
        args.extend(self.machine_args());
        let pace = match self.prefault.unwrap_or(Prefault::Max) {
            Prefault::Off => "off".to_owned(),
            Prefault::Max => "max".to_owned(),
            Prefault::BytesPerSecond(bytes) => (bytes / 1_000_000).to_string(),
        };
        push(&mut args, "--prefault", pace);
        args
    }

    /// The destination whose guest was made of two halves, in `snapshot`.
    pub(super) fn run_reconciled_args(&self, snapshot: &Path, hold: bool) -> Vec<OsString> {
        let mut args = self.run_eagerly_args(snapshot);
        if hold {
            args.push("--hold".into());
        }
        args
    }

    pub(super) fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    pub(super) fn migrate(&self, uri: String, tls: Option<&Certificates>) -> Command {
        let files = tls.map(|made| made.source.clone());
        Command::Migrate(
            MigrateArguments {
                tls_hostname: files.is_some().then(|| HOSTNAME.to_owned()),
                tls_certificate: files.as_ref().map(|files| files.certificate.clone()),
                tls_key: files.as_ref().map(|files| files.key.clone()),
                tls_ca: files.map(|files| files.ca),
                hints: self.hints,
                sources: self.sources,
                map_rounds: self.map_rounds,
                local: self.transport == ComparedTransport::Local,
                // The oracle needs the guest as it was saved.
                hold: self.transport == ComparedTransport::File,
                #[cfg(clause_switches)]
                switched_off: self.switch_off.clone(),
                ..self.migration.to(uri)
            }
            .into(),
        )
    }
}

impl fmt::Display for RunPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hints {}, seed {}", self.hints, self.workload.seed)
    }
}

fn push(args: &mut Vec<OsString>, flag: &str, value: impl ToString) {
    args.extend([OsString::from(flag), value.to_string().into()]);
}

/// A size as it is written on the command line, exactly.
fn bytes(size: Size) -> String {
    format!("{}B", size.0)
}

/// A value as it is written on the command line.
pub(super) fn name_of(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
