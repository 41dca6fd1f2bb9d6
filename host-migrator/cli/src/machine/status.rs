// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The answers of a machine to status commands on the control socket.

use std::time::Duration;

use host_migrator::Ownership;
use host_migrator::destination::PostcopyStatus;
use host_migrator::paging::PagingStatus;
use host_migrator::report::stats::MigrationStatus;
use reference_vmm::VcpuTimes;
use serde::{Deserialize, Serialize};

use crate::gaps::{GapFigures, ReadFigures};

/// The answer to [`crate::control::Command::Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Where the machine is in its life.
    pub machine: MachineState,
    /// Who owns the guest, as far as this side knows.
    pub ownership: Ownership,
    /// The guest's report; absent until the guest is up.
    pub guest: Option<GuestStatus>,
    /// What kept each vCPU from running the guest, as this host sees it.
    #[serde(default)]
    pub vcpus: Vec<VcpuStatus>,
    /// How the guest was restored, if it came out of a snapshot file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreStatus>,
    /// How the rest of the guest's memory comes, if the guest was handed over to this machine before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postcopy: Option<PostcopyStatus>,
    /// The address where a guest is awaited, or the source of a broken postcopy.
    pub incoming: Option<String>,
    /// Sources there must use TLS.
    #[serde(default)]
    pub incoming_tls: bool,
    /// Why the balloon device is lost, until another has taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon_lost: Option<String>,
    /// The outgoing migration, running or last.
    pub migration: MigrationStatus,
}

/// What kept a vCPU from running the guest since this machine was made, and what the guest itself has seen of it. Times are
/// milliseconds; those that this host's kernel does not know are absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", default)]
pub struct VcpuStatus {
    /// Held by the throttle while the guest was to run.
    pub throttled_ms: f64,
    /// Stopped with the whole guest: before it was started, for a migration, or by an operator.
    pub paused_ms: f64,
    /// Ready to run, while the host's processors ran others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<f64>,
    /// The host's kernel worked for it: page faults, those of the dirty log among them, and other exits. In steps of a clock tick.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_ms: Option<f64>,
    /// Page faults that KVM has resolved: first touches of memory, and writes to pages that the dirty log protects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<u64>,
    /// The bare guest's own gaps, since it was started on its first host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<GapFigures>,
    /// How long the bare guest waited for its memory, since it was started on its first host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_us: Option<ReadFigures>,
}

impl From<VcpuTimes> for VcpuStatus {
    fn from(times: VcpuTimes) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        Self {
            throttled_ms: ms(times.throttled),
            paused_ms: ms(times.paused),
            waited_ms: times.waited.map(ms),
            kernel_ms: times.kernel.map(ms),
            faults: times.faults,
            gap_ms: None,
            read_us: None,
        }
    }
}

/// How a guest was restored. Times are milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", default)]
pub struct RestoreStatus {
    /// Pages that are in the file.
    pub pages: u64,
    /// Reading the guest's memory; or, in a lazy restore, until its page faults could be answered.
    pub memory_ms: f64,
    /// Loading the machine's state.
    pub load_ms: f64,
    /// From opening the file until the guest ran, or was held.
    pub total_ms: f64,
    /// The same from the start of the command.
    pub first_instruction_ms: f64,
    /// How far a lazy restore is.
    pub lazy: Option<PagingStatus>,
}

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// A guest is awaited.
    Incoming,
    /// A guest has arrived and is held.
    Held,
    /// The guest runs here.
    Running,
    /// The guest has been handed over, and the destination has said that it runs there.
    HandedOver,
    /// All of the guest is here, stopped. The link died in the hand-over, and an operator must decide which side owns
    /// the guest.
    Undecided,
    /// The guest has ended (shut down, or failed to arrive).
    Ended,
}

/// A guest's report: from the bare guest's status page, or from the Linux guest's console.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", default)]
pub struct GuestStatus {
    /// Memory is filled and partly freed; the steady work has begun.
    pub ready: bool,
    /// Bytes in use, the guest's own program and tables included.
    pub in_use_bytes: u64,
    /// Stamps checked.
    pub checks: u64,
    /// Stamps that were wrong.
    pub wrong: u64,
    /// Checks of all memory in use that were completed.
    pub full_passes: u64,
    /// Hint rounds begun.
    pub hint_rounds: u64,
    /// Pages hinted.
    pub hinted_pages: u64,
    /// Hinted pages that the guest reused before DONE.
    pub early_releases: u64,
    /// How often the guest saw DONE.
    pub dones: u64,
    /// Of a Linux guest: microseconds of the longest time between two ticks of its work, each of 10 milliseconds, in the second before its
    /// last report.
    pub longest_gap: u64,
    /// Of a Linux guest: milliseconds by which its wall clock was behind this host's when its last line had arrived.
    /// The line's way is in it.
    pub clock_behind_ms: Option<i64>,
    /// Why the guest cannot go on.
    pub failure: Option<String>,
}

/// The answer to [`crate::control::Command::QueryMemory`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryMap {
    /// The guest's memory.
    pub regions: Vec<FileRange>,
    /// After a migration away from here: the pages whose content was not sent because of a hint, 64 a word.
    pub skipped: Vec<u64>,
}

/// A run of guest memory in a file that the machine has open.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileRange {
    /// Guest-physical start.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// The machine's file descriptor: `/proc/PID/fd/FD`.
    pub fd: i32,
    /// Where in the file it starts.
    pub offset: u64,
}
