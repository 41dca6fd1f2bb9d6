// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket of a running machine: one JSON object a line, in the manner of QMP.
//!
//! ```text
//! -> {"execute": "status"}
//! <- {"return": {"machine": "running", ...}}
//! -> {"execute": "migrate", "arguments": {"uri": "tcp:10.0.0.2:4444"}}
//! <- {"error": {"desc": "a migration is under way already"}}
//! ```

mod client;
mod compression;
mod descriptors;
mod direct_io;
mod dirty_rate;
mod events;
mod peers;
mod server;
mod tuning;

pub use client::{Client, ClientError};
pub use compression::CompressionName;
pub use direct_io::DirectIoName;
pub use dirty_rate::{DirtyRateArguments, DirtyRateInfo, DirtyRateMode, DirtyRateState};
pub use events::{EventPage, EventsArguments};
pub use server::{Handler, Served, serve};
pub use tuning::TuningArguments;

use std::num::NonZeroU32;
use std::path::PathBuf;

use host_migrator::wire::{TlsConfig, TlsFiles};
use host_migrator::{EARLY_HARVESTS, PageSource, PageSources, PostcopyStart, SYNC_INTERVAL};
use serde::{Deserialize, Serialize};

/// A command to a machine. The names follow QMP where QMP has the command.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "execute", content = "arguments", rename_all = "kebab-case")]
pub enum Command {
    /// What the machine and its migration are doing; answers [`crate::machine::Status`].
    Status,
    /// Migrate the machine.
    Migrate(Box<MigrateArguments>),
    /// Change how the running migration goes on.
    MigrateSetParameters(TuningArguments),
    /// Hand the guest of the running migration over before its memory. Only a migration with `postcopy` can do that.
    MigrateStartPostcopy,
    /// Go on with a postcopy whose connection has broken. The destination listens at the address, or opens the source's half there; the
    /// source connects to it.
    MigrateRecover(RecoverArguments),
    /// Save what this side of a broken postcopy has left of the guest, which is not served or run here any more; answers
    /// [`HalfSaved`] when it is on the disk.
    SaveHalf(SaveHalfArguments),
    /// Cancel the running migration; answered when the guest runs on here, and is out of the migration.
    MigrateCancel,
    /// What has happened in the running or last migration; answers [`EventPage`].
    QueryEvents(EventsArguments),
    /// Measure how fast the guest writes; answered when the measurement has begun.
    CalcDirtyRate(DirtyRateArguments),
    /// How far that is, and its result; answers [`DirtyRateInfo`].
    QueryDirtyRate,
    /// The full report of the last migration.
    QueryReport,
    /// Where the guest's memory can be read by a process of the same user; answers
    /// [`crate::machine::MemoryMap`].
    QueryMemory,
    /// Let a machine that was received with `--hold` run.
    Cont,
    /// Let a guest run on that a failed migration has left stopped. Does nothing if the guest runs.
    Resume,
    /// The operator decides that the guest, whose hand-over was not confirmed, belongs to this source: let it run here.
    SourceOwns,
    /// The operator decides that the guest belongs to this destination, which got no hand-over: let it run here.
    DestinationOwns,
    /// End the process. Refused if its guest would be lost and the arguments do not allow that. The answer comes before
    /// the process ends; the connection closes when it has ended.
    Quit(Option<QuitArguments>),
}

/// Where the two sides of a broken postcopy meet.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RecoverArguments {
    /// `tcp:HOST:PORT`, `unix:PATH` or `vsock:CID:PORT`. It need not be the address of the migration. At the destination also `file:PATH` or
    /// `file:PATH,offset=N`.
    pub uri: String,
}

/// Where a half is saved to.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SaveHalfArguments {
    /// `file:PATH` or `file:PATH,offset=N`.
    pub uri: String,
}

/// A half that was saved.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct HalfSaved {
    /// `source` or `destination`.
    pub side: String,
    /// Pages with content in the file.
    pub pages: u64,
    /// Bytes of the file, holes included.
    pub file_bytes: u64,
}

/// What may be lost by a `quit`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QuitArguments {
    /// The guest, if it is here.
    #[serde(default)]
    pub end_guest: bool,
}

/// The `uri` of connected sockets that come with the command: the control connection, and as many channels as wanted.
pub const GIVEN: &str = "fd:";

/// How to migrate. Fields that are left out have defaults.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MigrateArguments {
    /// `tcp:HOST:PORT`, `unix:PATH`, `vsock:CID:PORT`, or [`GIVEN`] for connected sockets that come with the command;
    /// `file:PATH` or `file:PATH,offset=N` to save the guest, which runs on here.
    pub uri: String,
    /// Greatest bandwidth in bytes a second; default: all that the link has.
    #[serde(default)]
    pub max_bandwidth: Option<u64>,
    /// Channels beside the control connection, or threads that write a file, 1 to 128; default: 2 where the host has two processors or more.
    #[serde(default)]
    pub multifd_channels: Option<u32>,
    /// How pages are compressed; default: not at all.
    #[serde(default)]
    pub multifd_compression: CompressionName,
    /// The level of `zstd`, 1 to 20; default: 1.
    #[serde(default)]
    pub multifd_zstd_level: Option<u8>,
    /// Greatest downtime in milliseconds.
    #[serde(default = "default_downtime_limit")]
    pub downtime_limit: u64,
    /// Greatest time of the switchover in milliseconds, before the guest runs on here; default: from the expected downtime.
    #[serde(default)]
    pub switchover_timeout: Option<u64>,
    /// How many times, about, a round harvests the vCPUs' dirty log before it ends.
    #[serde(default = "default_early_harvests")]
    pub early_harvests: u32,
    /// Rounds after which the guest is stopped, however much is left; default: it is stopped only when the downtime
    /// limit can be kept.
    #[serde(default)]
    pub max_rounds: Option<NonZeroU32>,
    /// Into a file: seconds for which a guest that is still telling what is free may go on when all else is written; none: for as long as
    /// it has taken until then, if it is expected to end by then.
    #[serde(default)]
    pub wait_for_hints: Option<u32>,
    /// Hand the guest over before its memory: `at-once`, `when-stalled`, `on-command` or after so many rounds; default: all memory is sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postcopy: Option<PostcopyStart>,
    /// Greatest bandwidth, in bytes a second, for memory that is sent after the hand-over and that the guest does not wait for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth: Option<u64>,
    /// Throttle the guest if it writes too fast.
    #[serde(default)]
    pub auto_converge: bool,
    /// The first step of the throttle, in percent; default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    /// Each further step, in percent; default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    /// The most, in percent; default: 99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_max: Option<u8>,
    /// Steps are smaller where that is enough; default: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_tailslow: Option<bool>,
    /// The throttle also rises when the share of dirtied pages does not fall; default: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_responsive: Option<bool>,
    /// Pages dirtied for each hundred that are sent, from which the guest writes too fast; default: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_trigger_threshold: Option<u8>,
    /// The most that each vCPU of a guest that writes too fast may make dirty, in megabytes (2^20 bytes) a second; default: no limit. The
    /// machine must log in rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_dirty_limit: Option<u64>,
    /// The most of its time that the guest may lose, in percent. With this, `deadline` or `downtime-limit-max` the machine chooses how
    /// the migration ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_guest_slowdown: Option<u8>,
    /// Milliseconds after which the migration should have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// The longest downtime in milliseconds, if the migration would not end otherwise; default: `downtime-limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_limit_max: Option<u64>,
    /// Milliseconds between harvests in the middle of a round; 0: none.
    #[serde(default = "default_sync_interval")]
    pub sync_interval: u64,
    /// TLS: the file of this side's certificate. The machine reads the three files; all together switch TLS on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// TLS: the file of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// TLS: the file of the CA that has signed the destination's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// TLS: the host that the destination's certificate must be for; default: that of `uri`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
    /// Which knowledge of pages that need not be sent is used.
    #[serde(default)]
    pub hints: HintMode,
    /// The sources that are used, of those that `hints` allows; default: all.
    #[serde(default)]
    pub sources: PageSources,
    /// Lend the memory itself to a destination on this host, over a unix socket, instead of sending pages.
    #[serde(default)]
    pub local: bool,
    /// For a file: keep the guest stopped after it was saved.
    #[serde(default)]
    pub hold: bool,
    /// For a file: whether its pages go through the page cache.
    #[serde(default)]
    pub direct_io: DirectIoName,
    /// Keep maps of the rounds for the report.
    #[serde(default)]
    pub map_rounds: bool,
    /// Clauses of the rule to switch off. Only `cfg(clause_switches)` builds have this; others refuse it as unknown.
    #[cfg(clause_switches)]
    #[serde(default)]
    pub switched_off: Vec<String>,
}

impl MigrateArguments {
    /// A migration to `uri` in which everything has its default.
    #[must_use]
    pub fn to(uri: String) -> Self {
        Self {
            uri,
            max_bandwidth: None,
            multifd_channels: None,
            multifd_compression: CompressionName::None,
            multifd_zstd_level: None,
            downtime_limit: default_downtime_limit(),
            switchover_timeout: None,
            early_harvests: EARLY_HARVESTS,
            max_rounds: None,
            wait_for_hints: None,
            postcopy: None,
            max_postcopy_bandwidth: None,
            auto_converge: false,
            cpu_throttle_initial: None,
            cpu_throttle_increment: None,
            cpu_throttle_max: None,
            cpu_throttle_tailslow: None,
            cpu_throttle_responsive: None,
            throttle_trigger_threshold: None,
            vcpu_dirty_limit: None,
            max_guest_slowdown: None,
            deadline: None,
            downtime_limit_max: None,
            sync_interval: default_sync_interval(),
            tls_certificate: None,
            tls_key: None,
            tls_ca: None,
            tls_hostname: None,
            hints: HintMode::default(),
            sources: PageSources::default(),
            local: false,
            hold: false,
            direct_io: DirectIoName::default(),
            map_rounds: false,
            #[cfg(clause_switches)]
            switched_off: Vec::new(),
        }
    }
}

impl MigrateArguments {
    /// These arguments with those of the throttle, and the time between harvests, from `tuning`.
    #[must_use]
    pub fn tuned(self, tuning: TuningArguments) -> Self {
        Self {
            auto_converge: tuning.auto_converge.unwrap_or(self.auto_converge),
            cpu_throttle_initial: tuning.cpu_throttle_initial,
            cpu_throttle_increment: tuning.cpu_throttle_increment,
            cpu_throttle_max: tuning.cpu_throttle_max,
            cpu_throttle_tailslow: tuning.cpu_throttle_tailslow,
            cpu_throttle_responsive: tuning.cpu_throttle_responsive,
            throttle_trigger_threshold: tuning.throttle_trigger_threshold,
            vcpu_dirty_limit: tuning.vcpu_dirty_limit,
            max_guest_slowdown: tuning.max_guest_slowdown,
            deadline: tuning.deadline,
            downtime_limit_max: tuning.downtime_limit_max,
            sync_interval: tuning.sync_interval.unwrap_or(self.sync_interval),
            ..self
        }
    }

    /// The throttle, and the time between harvests.
    pub fn tuning(&self) -> TuningArguments {
        TuningArguments {
            auto_converge: Some(self.auto_converge),
            cpu_throttle_initial: self.cpu_throttle_initial,
            cpu_throttle_increment: self.cpu_throttle_increment,
            cpu_throttle_max: self.cpu_throttle_max,
            cpu_throttle_tailslow: self.cpu_throttle_tailslow,
            cpu_throttle_responsive: self.cpu_throttle_responsive,
            throttle_trigger_threshold: self.throttle_trigger_threshold,
            vcpu_dirty_limit: self.vcpu_dirty_limit,
            max_guest_slowdown: self.max_guest_slowdown,
            deadline: self.deadline,
            downtime_limit_max: self.downtime_limit_max,
            sync_interval: Some(self.sync_interval),
            ..TuningArguments::default()
        }
    }

    /// The certificates to migrate with; `None` for a migration without TLS.
    ///
    /// # Errors
    /// A sentence, if one of the three files is missing here or cannot be used.
    pub fn tls(&self) -> Result<Option<TlsConfig>, String> {
        let files = (&self.tls_certificate, &self.tls_key, &self.tls_ca);
        let (Some(certificate), Some(key), Some(ca)) = files else {
            if files == (&None, &None, &None) && self.tls_hostname.is_none() {
                return Ok(None);
            }
            let text = "TLS needs tls-certificate, tls-key and tls-ca, all three";
            return Err(text.into());
        };
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            ca: ca.clone(),
        };
        let mut tls = TlsConfig::load(&files).map_err(|error| error.to_string())?;
        if let Some(name) = &self.tls_hostname {
            tls = tls.expecting(name).map_err(|error| error.to_string())?;
        }
        Ok(Some(tls))
    }
}

/// QEMU's default.
const fn default_downtime_limit() -> u64 {
    300
}

const fn default_sync_interval() -> u64 {
    SYNC_INTERVAL.as_millis() as u64
}

const fn default_early_harvests() -> u32 {
    EARLY_HARVESTS
}

/// What a migration may use to find pages that need not be sent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum HintMode {
    /// Only zero pages, found by reading every page: what a migration without this project does
    Off,
    /// Also holes of the memory file: pages that were never touched, or were given back to the host
    Holes,
    /// Also what the guest says: free page hints
    #[default]
    On,
}

impl HintMode {
    /// Those of the `chosen` sources that this mode uses. Mode `off` always finds zero pages.
    pub fn sources(self, chosen: PageSources) -> PageSources {
        match self {
            Self::Off => [PageSource::Zero].into_iter().collect(),
            Self::Holes => chosen.without_hints(),
            Self::On => chosen,
        }
    }
}

impl std::fmt::Display for HintMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Holes => "holes",
            Self::On => "on",
        })
    }
}

/// The answer to a [`Command`].
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The command was done; the value depends on the command.
    Return(serde_json::Value),
    /// The command was not done.
    Error {
        /// Why, in a sentence for people.
        desc: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_qmp_writes_them() {
        let status: Command = serde_json::from_str(r#"{"execute": "status"}"#).unwrap();
        assert_eq!(status, Command::Status);
        let quit: Command = serde_json::from_str(r#"{"execute": "quit"}"#).unwrap();
        assert_eq!(quit, Command::Quit(None));
        let line = r#"{"execute": "quit", "arguments": {"end-guest": true}}"#;
        let quit: Command = serde_json::from_str(line).unwrap();
        assert_eq!(quit, Command::Quit(Some(QuitArguments { end_guest: true })));
        let line = r#"{"execute": "migrate", "arguments": {"uri": "unix:/x", "max-bandwidth": 5}}"#;
        let Command::Migrate(migrate) = serde_json::from_str(line).unwrap() else {
            panic!()
        };
        assert_eq!(
            (migrate.max_bandwidth, migrate.downtime_limit),
            (Some(5), 300)
        );
        let defaults = MigrateArguments {
            max_bandwidth: Some(5),
            ..MigrateArguments::to("unix:/x".into())
        };
        assert_eq!(*migrate, defaults);
        assert_eq!(migrate.hints, HintMode::On);
        assert_eq!(migrate.sources, PageSources::ALL);
        let line = r#"{"execute": "migrate", "arguments": {"uri": "unix:/x", "sources": ["agent", "zero"]}}"#;
        let Command::Migrate(migrate) = serde_json::from_str(line).unwrap() else {
            panic!()
        };
        assert_eq!(migrate.sources.to_string(), "agent,zero");
    }

    #[cfg(not(clause_switches))]
    #[test]
    fn a_clause_to_switch_off_is_an_unknown_argument() {
        let line = r#"{"execute": "migrate", "arguments": {"uri": "unix:/x", "switched-off": ["arm-first"]}}"#;
        let error = serde_json::from_str::<Command>(line)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `switched-off`"), "{error}");
    }

    #[test]
    fn a_misspelt_argument_is_an_error_not_a_default() {
        let line = r#"{"execute": "migrate", "arguments": {"uri": "unix:/x", "max-bandwith": 5}}"#;
        let error = serde_json::from_str::<Command>(line)
            .unwrap_err()
            .to_string();
        assert!(error.contains("max-bandwith"), "{error}");
    }
}
