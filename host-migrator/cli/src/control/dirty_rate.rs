// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast the guest writes: the arguments of `calc-dirty-rate`, and the answer of `query-dirty-rate`.

use serde::{Deserialize, Serialize};

/// How a dirty rate is measured. The names on the control socket are QEMU's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum DirtyRateMode {
    /// From the content of a sample of the guest's pages. The guest loses no time; a write of what was there is not seen
    #[default]
    #[serde(rename = "page-sampling")]
    Sampling,
    /// By KVM's dirty bitmap, exactly. The guest pays for each first write to a page in a second
    #[serde(rename = "dirty-bitmap")]
    Bitmap,
    /// By KVM's dirty rings, exactly and for each virtual processor, of a machine with --dirty-log ring
    #[serde(rename = "dirty-ring")]
    Ring,
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DirtyRateArguments {
    /// For so many seconds, 1 to 60.
    pub calc_time: u32,
    /// In this way.
    #[serde(default)]
    pub mode: DirtyRateMode,
}

/// How far a measurement is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirtyRateState {
    /// None has begun.
    #[default]
    Unstarted,
    /// It is under way.
    Measuring,
    /// It is done.
    Measured,
    /// It has ended without a result.
    Failed,
}

/// The running or last measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct DirtyRateInfo {
    /// How far it is.
    pub status: DirtyRateState,
    /// How it measures.
    pub mode: DirtyRateMode,
    /// For how many seconds.
    pub calc_time: u32,
    /// Megabytes (2^20 bytes) of pages that became dirty, a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_rate: Option<f64>,
    /// The same in each second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dirty_rate_by_second: Vec<f64>,
    /// The same of each virtual processor, if the mode knows it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vcpu_dirty_rate: Vec<f64>,
    /// Bytes of pages that became dirty at any time, each page counted once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distinct_bytes: Option<u64>,
    /// Of a sample: how many pages were in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled_pages: Option<u64>,
    /// Why there is no result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
}
