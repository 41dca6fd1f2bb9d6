// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare guest of a lab.

use std::ffi::OsString;

/// A small bare guest and its workload.
#[derive(Clone, Debug)]
pub struct BareGuest {
    /// Guest memory, as on the command line.
    pub memory: &'static str,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory that stays in use.
    pub in_use: &'static str,
    /// Memory written once and then freed.
    pub freed: &'static str,
    /// Bytes a second written to memory in use.
    pub dirty_rate: &'static str,
    /// Pages a second freed and taken again.
    pub churn: u64,
    /// Seed of its choices.
    pub seed: u64,
    /// `until-done` or `early`.
    pub hold: &'static str,
    /// `prompt` or `silent`.
    pub answer: &'static str,
    /// `bitmap` or `ring`.
    pub dirty_log: &'static str,
    /// Seconds for which the other machine may be silent.
    pub peer_timeout: &'static str,
}

impl Default for BareGuest {
    fn default() -> Self {
        Self {
            memory: "256M",
            vcpus: 1,
            in_use: "32M",
            freed: "160M",
            dirty_rate: "4M",
            churn: 200,
            seed: 1,
            hold: "until-done",
            answer: "prompt",
            dirty_log: "bitmap",
            peer_timeout: "30",
        }
    }
}

impl BareGuest {
    /// Two vCPUs that write all the time, and take pages again at once.
    pub fn busy() -> Self {
        Self {
            vcpus: 2,
            dirty_rate: "64M",
            churn: 5000,
            hold: "early",
            ..Self::default()
        }
    }

    /// The flags of its machine.
    pub(super) fn machine_args(&self) -> Vec<OsString> {
        let vcpus = self.vcpus.to_string();
        [
            "--guest",
            "bare",
            "--memory",
            self.memory,
            "--vcpus",
            &vcpus,
            "--dirty-log",
            self.dirty_log,
            "--peer-timeout",
            self.peer_timeout,
        ]
        .map(Into::into)
        .to_vec()
    }

    /// The command line that runs it.
    pub(super) fn run_args(&self) -> Vec<OsString> {
        let (churn, seed) = (self.churn.to_string(), self.seed.to_string());
        let workload = [
            "--in-use",
            self.in_use,
            "--freed",
            self.freed,
            "--dirty-rate",
            self.dirty_rate,
            "--churn",
            &churn,
            "--seed",
            &seed,
            "--hold",
            self.hold,
            "--answer",
            self.answer,
        ];
        let mut args = vec!["run".into()];
        args.extend(self.machine_args());
        args.extend(workload.map(OsString::from));
        args
    }
}
