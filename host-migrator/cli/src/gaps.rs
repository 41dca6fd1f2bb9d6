// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of the gaps in which a guest did not run.

use serde::{Deserialize, Serialize};
use spec::gaps::Gaps;

/// Gaps between the beats of a guest that wants to beat each millisecond. All but `beats` are milliseconds, and 0 if it did not
/// beat.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct GapFigures {
    /// How many gaps there were.
    pub beats: u64,
    /// Half of them were not longer.
    pub p50: f64,
    /// The same for 99 of 100.
    pub p99: f64,
    /// The same for 999 of 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl GapFigures {
    /// The figures of `gaps`.
    pub fn of(gaps: &Gaps) -> Self {
        let ms = |micros: Option<u64>| micros.unwrap_or(0) as f64 / 1000.0;
        Self {
            beats: gaps.count(),
            p50: ms(gaps.all_but_one_in(2)),
            p99: ms(gaps.all_but_one_in(100)),
            p999: ms(gaps.all_but_one_in(1000)),
            max: ms(gaps.longest()),
        }
    }
}
