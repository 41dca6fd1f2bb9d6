// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of what a guest has noticed: the gaps in which it did not run, and how long its memory took.

use serde::{Deserialize, Serialize};
use spec::gaps::{Gaps, ReadTimes};

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
            max: ms(gaps.greatest()),
        }
    }
}

/// How long a vCPU waited for a word of a random page in use, about once a millisecond. All but `reads` are microseconds, and 0 if it
/// read nothing.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct ReadFigures {
    /// How many reads there were.
    pub reads: u64,
    /// Half of them did not take longer.
    pub p50: f64,
    /// The same for 99 of 100.
    pub p99: f64,
    /// The same for 999 of 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl ReadFigures {
    /// The figures of `times`.
    pub fn of(times: &ReadTimes) -> Self {
        let us = |nanos: Option<u64>| nanos.unwrap_or(0) as f64 / 1000.0;
        Self {
            reads: times.count(),
            p50: us(times.all_but_one_in(2)),
            p99: us(times.all_but_one_in(100)),
            p999: us(times.all_but_one_in(1000)),
            max: us(times.greatest()),
        }
    }
}
