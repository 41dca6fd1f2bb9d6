// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrations from one host to another.

use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU32;
use std::os::unix::net::UnixStream;

use host_migrator::wire::TlsFiles;
use host_migrator::{MigrationReport, MigrationState, MigrationStatus};
use lacuna::args::GuestKind;
use lacuna::compare::{CompareError, Host, Verdict, ask_oracle};
use lacuna::control::{self, Answer, CompressionName, HintMode, MigrateArguments, TuningArguments};
use lacuna::machine::MachineState;

use super::PATIENCE;

/// How a test migrates.
#[derive(Clone, Debug)]
pub struct Migration {
    /// The mode of hints.
    pub hints: HintMode,
    /// Bandwidth limit in bytes a second.
    pub max_bandwidth: Option<u64>,
    /// Channels beside the control connection; default: as many as the machine has by default.
    pub multifd_channels: Option<u32>,
    /// How pages are compressed.
    pub compression: CompressionName,
    /// The memory itself is handed over.
    pub local: bool,
    /// The source's certificate, and the name that the destination's must be for; default: no TLS.
    pub tls: Option<(TlsFiles, Option<&'static str>)>,
    /// Downtime limit in milliseconds.
    pub downtime_limit: u64,
    /// Rounds after which the guest is stopped, however much is left.
    pub max_rounds: Option<NonZeroU32>,
    /// The throttle.
    pub tuning: TuningArguments,
    /// Clauses of the rule that are switched off. Only a build with `cfg(clause_switches)` accepts any.
    pub switched_off: Vec<&'static str>,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            hints: HintMode::On,
            max_bandwidth: None,
            multifd_channels: None,
            compression: CompressionName::None,
            local: false,
            tls: None,
            downtime_limit: 300,
            max_rounds: None,
            tuning: TuningArguments::default(),
            switched_off: Vec::new(),
        }
    }
}

impl Migration {
    /// A migration that has one connection: all its steps are on it, in their order.
    pub fn on_one_connection() -> Self {
        Self {
            multifd_channels: Some(1),
            ..Self::default()
        }
    }

    /// A migration that goes on for longer than a test: 1 MiB a second, and no downtime is short enough.
    pub fn without_end() -> Self {
        Self {
            max_bandwidth: Some(1 << 20),
            downtime_limit: 0,
            ..Self::default()
        }
    }

    /// Asks `source` to migrate to `uri`.
    ///
    /// # Panics
    /// If it refuses.
    pub fn begin(&self, source: &Host, uri: &str) {
        self.try_to_begin(source, uri)
            .expect("the machine begins to migrate");
    }

    /// Asks `source` to migrate to `uri`. Returns the reason if it refuses.
    pub fn try_to_begin(&self, source: &Host, uri: &str) -> Result<(), String> {
        let files = self.tls.as_ref().map(|(files, _)| files.clone());
        let arguments = MigrateArguments {
            tls_hostname: (self.tls.as_ref()).and_then(|(_, name)| name.map(ToOwned::to_owned)),
            tls_certificate: files.as_ref().map(|files| files.certificate.clone()),
            tls_key: files.as_ref().map(|files| files.key.clone()),
            tls_ca: files.map(|files| files.ca),
            max_bandwidth: self.max_bandwidth,
            multifd_channels: self.multifd_channels,
            multifd_compression: self.compression,
            local: self.local,
            downtime_limit: self.downtime_limit,
            max_rounds: self.max_rounds,
            hints: self.hints,
            ..MigrateArguments::to(uri.to_owned())
        }
        .tuned(self.tuning);
        let command = control::Command::Migrate(arguments.into());
        let mut command = serde_json::to_value(command).expect("a command is JSON");
        if !self.switched_off.is_empty() {
            // These tests are built without the switches, so the type does not have this field.
            command["arguments"]["switched-off"] = self.switched_off.clone().into();
        }
        match exchange(source, &command) {
            Answer::Return(_) => Ok(()),
            Answer::Error { desc } => Err(desc),
        }
    }

    /// Migrates from `source` to `destination` at `uri` and compares the memory of the two, which the
    /// destination must hold. Returns the report and the verdict.
    pub fn complete(
        &self,
        source: &mut Host,
        destination: &mut Host,
        uri: &str,
    ) -> Result<(MigrationReport, Verdict), CompareError> {
        self.begin(source, uri);
        let ended = end_of_migration(source)?;
        if ended.status != MigrationState::Completed {
            return Err(CompareError::Migration(
                ended.error_desc.unwrap_or_default(),
            ));
        }
        destination.wait_until("the guest to arrive", PATIENCE, |status| {
            Ok(status.machine == MachineState::Held)
        })?;
        let report = source.client()?.ask(&control::Command::QueryReport)?;
        let verdict = ask_oracle(GuestKind::Bare, source, destination)?;
        Ok((report, verdict))
    }
}

/// Waits until the migration away from `source` has ended.
pub fn end_of_migration(source: &mut Host) -> Result<MigrationStatus, CompareError> {
    let status = source.wait_until("the migration to end", PATIENCE, |status| {
        Ok(status.migration.status.is_over())
    })?;
    Ok(status.migration)
}

/// Waits until the migration away from `source` has ended in the state `how`.
///
/// # Panics
/// If it ends in another state.
pub fn ends(source: &mut Host, how: MigrationState) -> MigrationStatus {
    let ended = end_of_migration(source).expect("the machine says how it ended");
    assert_eq!(ended.status, how, "{ended:?}");
    ended
}

/// The pages that were left out because the guest had hinted them.
pub fn hinted(report: &MigrationReport) -> u64 {
    report.rounds.iter().map(|round| round.pages_hinted).sum()
}

/// Sends one line to the machine's control socket, and returns the answer.
fn exchange(host: &Host, command: &serde_json::Value) -> Answer {
    let stream = UnixStream::connect(&host.control).expect("the machine listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    writeln!(&stream, "{command}").expect("the machine reads");
    let mut answer = String::new();
    BufReader::new(&stream)
        .read_line(&mut answer)
        .expect("the machine answers");
    serde_json::from_str(&answer).expect("an answer")
}
