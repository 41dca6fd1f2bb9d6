// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast a guest makes memory dirty, without a migration.
//!
//! | module | what it is |
//! |---|---|
//! | `log_meter` | exact, by a dirty log: the guest pays for each first write to a page |
//! | `sample_meter` | an estimate from samples of its memory: the guest pays nothing |

pub mod log_meter;
pub mod sample_meter;

use std::time::Duration;

use spec::PAGE_SIZE;

use crate::memory::error::RamError;
use crate::vm::dirty_log::DirtyLogError;

/// A measurement that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyMeterError {
    /// The dirty log.
    #[error(transparent)]
    Log(#[from] DirtyLogError),
    /// Guest memory cannot be read.
    #[error("guest memory cannot be sampled: {0}")]
    Memory(#[from] RamError),
}

/// Counts the pages that a guest makes dirty, from the moment it is made.
pub trait DirtyMeter: Send {
    /// The pages that became dirty since the last look. A page that was written several times counts once.
    ///
    /// # Errors
    /// [`DirtyMeterError`]; the measurement is over then.
    fn look(&mut self) -> Result<u64, DirtyMeterError>;

    /// The pages that became dirty at any time so far, each counted once.
    fn distinct(&self) -> u64;
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirtyRate {
    /// Bytes of pages that became dirty, a second, in each second of the measurement.
    pub seconds: Vec<f64>,
    /// Bytes of pages that became dirty at any time, each page counted once: at least so much would be sent again.
    pub distinct_bytes: u64,
}

impl DirtyRate {
    /// The mean of all seconds, in bytes a second.
    pub fn mean(&self) -> f64 {
        self.seconds.iter().sum::<f64>() / self.seconds.len().max(1) as f64
    }
}

/// Looks at `meter` at the end of each of `seconds`. `wait` waits for the end of the second that it is given, from 1, and returns
/// the time since the measurement began; none: the measurement is broken off, and has no result.
///
/// # Errors
/// That of the meter.
pub fn measure(
    meter: &mut dyn DirtyMeter,
    seconds: u32,
    wait: &mut dyn FnMut(u32) -> Option<Duration>,
) -> Result<Option<DirtyRate>, DirtyMeterError> {
    let mut rate = DirtyRate::default();
    let mut before = Duration::ZERO;
    for second in 1..=seconds {
        let Some(now) = wait(second) else {
            return Ok(None);
        };
        let period = now.saturating_sub(before).max(Duration::from_millis(1));
        before = now;
        let bytes = (meter.look()? * PAGE_SIZE) as f64;
        rate.seconds.push(bytes / period.as_secs_f64());
    }
    rate.distinct_bytes = meter.distinct() * PAGE_SIZE;
    Ok(Some(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds these numbers of pages.
    struct Found(Vec<u64>);

    impl DirtyMeter for Found {
        fn look(&mut self) -> Result<u64, DirtyMeterError> {
            Ok(self.0.remove(0))
        }

        fn distinct(&self) -> u64 {
            7
        }
    }

    #[test]
    fn a_second_that_took_longer_is_counted_with_its_real_length() {
        let mut wait = |second| Some(Duration::from_secs([1, 3][second as usize - 1]));
        let rate = measure(&mut Found(vec![10, 10]), 2, &mut wait).unwrap();
        let page = PAGE_SIZE as f64;
        let expected = DirtyRate {
            seconds: vec![10.0 * page, 5.0 * page],
            distinct_bytes: 7 * PAGE_SIZE,
        };
        assert_eq!(rate, Some(expected.clone()));
        assert_eq!(expected.mean(), 7.5 * page);
    }

    #[test]
    fn a_measurement_that_is_broken_off_has_no_result() {
        let mut wait = |second| (second < 2).then_some(Duration::from_secs(1));
        let rate = measure(&mut Found(vec![10, 10]), 2, &mut wait).unwrap();
        assert_eq!(rate, None);
    }
}
