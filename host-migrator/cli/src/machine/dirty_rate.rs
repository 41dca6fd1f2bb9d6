// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures how fast the guest of this machine writes.
//!
//! KVM has one dirty log for a guest. A measurement that uses it gives way to a migration that begins, and none begins while a
//! migration is under way. One that samples memory uses no log, and goes on beside both.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::dirty_rate::log_meter::LogMeter;
use host_migrator::dirty_rate::sample_meter::{SAMPLED_PAGES, SampleMeter};
use host_migrator::dirty_rate::{DirtyMeter, DirtyRate, measure};
use host_migrator::{DirtyLog, GuestRam};
use parking_lot::{Condvar, Mutex};
use reference_vmm::dirty_ring::DirtyRings;

use super::request::text;
use crate::control::{DirtyRateArguments, DirtyRateInfo, DirtyRateState};

/// How many seconds a measurement may take.
const SECONDS: RangeInclusive<u32> = 1..=60;
const MIB: f64 = (1 << 20) as f64;

const BROKEN_OFF: &str = "a migration has begun and needs the dirty log: `lacuna status` shows what its guest dirties, and --mode sampling \
                          measures beside it";

const NOT_HERE: &str = "the guest has left this machine, was stopped or has ended meanwhile";

/// What is measured, and with what.
pub(super) enum Means {
    /// By samples of memory.
    Sampling(Arc<GuestRam>),
    /// By a dirty log, which is off, of a guest whose bitmap has so many pages.
    Log(Box<dyn DirtyLog>, u64),
    /// By a dirty log in these rings.
    Rings(Box<dyn DirtyLog>, u64, Arc<DirtyRings>),
}

/// The running or last measurement.
#[derive(Debug, Default)]
pub(super) struct DirtyRateMeasurement {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    info: DirtyRateInfo,
    /// One that is under way holds the dirty log.
    holds_log: bool,
    /// It is to give the dirty log back.
    gives_way: bool,
}

impl DirtyRateMeasurement {
    /// Starts a measurement by `means`. `runs` says whether the guest runs here.
    ///
    /// # Errors
    /// A sentence, if one is under way, or it cannot begin.
    pub(super) fn start(
        self: &Arc<Self>,
        arguments: DirtyRateArguments,
        means: Means,
        runs: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), String> {
        let seconds = arguments.calc_time;
        if !SECONDS.contains(&seconds) {
            let (least, most) = SECONDS.into_inner();
            return Err(format!(
                "calc-time is {seconds} s, and must be {least} to {most}"
            ));
        }
        let mut state = self.state.lock();
        if state.info.status == DirtyRateState::Measuring {
            return Err(
                "the dirty rate is being measured already: wait until that has ended".into(),
            );
        }
        let ours = Arc::clone(self);
        let holds_log = !matches!(means, Means::Sampling(_));
        thread::Builder::new()
            .name("dirty-rate".into())
            .spawn(move || ours.run(seconds, means, &runs))
            .map_err(text)?;
        *state = State {
            info: DirtyRateInfo {
                status: DirtyRateState::Measuring,
                mode: arguments.mode,
                calc_time: seconds,
                ..DirtyRateInfo::default()
            },
            holds_log,
            gives_way: false,
        };
        Ok(())
    }

    /// The running or last measurement.
    pub(super) fn info(&self) -> DirtyRateInfo {
        self.state.lock().info.clone()
    }

    /// Breaks a measurement off that uses the dirty log. The log is off when this returns.
    pub(super) fn give_way(&self) {
        let mut state = self.state.lock();
        state.gives_way = true;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| state.holds_log);
    }

    fn run(&self, seconds: u32, means: Means, runs: &dyn Fn() -> bool) {
        // A thread that panics must not hold up a migration.
        let ended = Ended(self);
        let result = self.measured(seconds, means);
        // Before the question, whose answer may wait for a migration that waits for the log.
        self.has_no_log();
        let result = match runs() {
            true => result,
            false => result.and(Err(NOT_HERE.into())),
        };
        let mut state = self.state.lock();
        match result {
            Ok(info) => {
                state.info = DirtyRateInfo {
                    status: DirtyRateState::Measured,
                    mode: state.info.mode,
                    calc_time: seconds,
                    ..info
                };
            }
            Err(why) => state.fails(why),
        }
        drop(state);
        drop(ended);
    }

    fn has_no_log(&self) {
        self.state.lock().holds_log = false;
        self.changed.notify_all();
    }

    fn measured(&self, seconds: u32, means: Means) -> Result<DirtyRateInfo, String> {
        match means {
            Means::Sampling(ram) => {
                let seed = std::process::id().into();
                let mut meter = SampleMeter::start(ram, SAMPLED_PAGES, seed).map_err(text)?;
                let rate = self.measured_by(&mut meter, seconds)?;
                Ok(DirtyRateInfo {
                    sampled_pages: Some(meter.sampled()),
                    ..info(&rate)
                })
            }
            Means::Log(log, pages) => {
                let mut meter = LogMeter::start(log, pages).map_err(text)?;
                Ok(info(&self.measured_by(&mut meter, seconds)?))
            }
            Means::Rings(log, pages, rings) => {
                let mut meter = LogMeter::start(log, pages).map_err(text)?;
                let before = rings.take();
                let rate = self.measured_by(&mut meter, seconds)?;
                let entries: Vec<f64> = (rings.take().iter().zip(before))
                    .map(|(now, before)| (now - before) as f64)
                    .collect();
                // A page that several processors wrote has an entry of each, and counts once.
                let share = rate.mean() / MIB / entries.iter().sum::<f64>().max(1.0);
                Ok(DirtyRateInfo {
                    vcpu_dirty_rate: entries.iter().map(|entries| entries * share).collect(),
                    ..info(&rate)
                })
            }
        }
    }

    fn measured_by(&self, meter: &mut dyn DirtyMeter, seconds: u32) -> Result<DirtyRate, String> {
        let began = Instant::now();
        let waits = |second| self.wait_until(began + Duration::from_secs(u64::from(second)));
        let mut wait = |second| waits(second).then(|| began.elapsed());
        let rate = measure(meter, seconds, &mut wait).map_err(text)?;
        rate.ok_or_else(|| BROKEN_OFF.into())
    }

    /// Waits until `end`. False: the dirty log is wanted by another.
    fn wait_until(&self, end: Instant) -> bool {
        let mut state = self.state.lock();
        let waits = |state: &mut State| !(state.holds_log && state.gives_way);
        self.changed
            .wait_while_for(
                &mut state,
                waits,
                end.saturating_duration_since(Instant::now()),
            )
            .timed_out()
    }
}

impl State {
    fn fails(&mut self, why: String) {
        self.info.status = DirtyRateState::Failed;
        self.info.error_desc = Some(why);
    }
}

/// What is said of `rate`.
fn info(rate: &DirtyRate) -> DirtyRateInfo {
    DirtyRateInfo {
        dirty_rate: Some(rate.mean() / MIB),
        dirty_rate_by_second: rate.seconds.iter().map(|bytes| bytes / MIB).collect(),
        distinct_bytes: Some(rate.distinct_bytes),
        ..DirtyRateInfo::default()
    }
}

/// Says that a measurement has ended, however it has, and has the dirty log no more.
struct Ended<'a>(&'a DirtyRateMeasurement);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if state.info.status == DirtyRateState::Measuring {
            state.fails("the thread that measures has panicked".into());
        }
        drop(state);
        self.0.has_no_log();
    }
}

#[cfg(test)]
mod tests {
    use host_migrator::{DirtyLogError, LogSource, MigrationBitmap, RamRegion};
    use spec::PAGE_SIZE;
    use spec_testing::eventually;

    use super::*;
    use crate::control::DirtyRateMode;

    /// A log that knows whether it is on.
    struct Switch(Arc<Mutex<bool>>);

    impl DirtyLog for Switch {
        fn source(&self) -> LogSource {
            LogSource::Kvm
        }

        fn start(&mut self) -> Result<(), DirtyLogError> {
            *self.0.lock() = true;
            Ok(())
        }

        fn harvest(&mut self, _bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
            Ok(0)
        }

        fn stop(&mut self) -> Result<(), DirtyLogError> {
            *self.0.lock() = false;
            Ok(())
        }
    }

    fn arguments(calc_time: u32) -> DirtyRateArguments {
        DirtyRateArguments {
            calc_time,
            mode: DirtyRateMode::Bitmap,
        }
    }

    fn end(measurement: &DirtyRateMeasurement) -> DirtyRateInfo {
        eventually("the end", || {
            let info = measurement.info();
            (info.status != DirtyRateState::Measuring).then_some(info)
        })
    }

    #[test]
    fn a_measurement_gives_the_log_to_a_migration_and_says_so() {
        let is_on = Arc::default();
        let measurement = Arc::<DirtyRateMeasurement>::default();
        let means = || Means::Log(Box::new(Switch(Arc::clone(&is_on))), 64);
        measurement.start(arguments(60), means(), || true).unwrap();
        eventually("the log to be on", || is_on.lock().then_some(()));
        let error = measurement
            .start(arguments(60), means(), || true)
            .unwrap_err();
        assert!(error.contains("already"), "{error}");
        measurement.give_way();
        assert!(!*is_on.lock());
        let info = end(&measurement);
        assert_eq!(info.status, DirtyRateState::Failed);
        let why = info.error_desc.unwrap();
        assert!(why.contains("a migration has begun"), "{why}");
        measurement.start(arguments(60), means(), || true).unwrap();
        measurement.give_way();
    }

    #[test]
    fn a_measurement_by_samples_goes_on_beside_a_migration() {
        let measurement = Arc::<DirtyRateMeasurement>::default();
        let region = RamRegion::new(0, 64 * PAGE_SIZE).unwrap();
        let ram = Arc::new(GuestRam::map(vec![region]).unwrap());
        measurement
            .start(arguments(1), Means::Sampling(ram), || true)
            .unwrap();
        measurement.give_way();
        let info = end(&measurement);
        assert_eq!(info.status, DirtyRateState::Measured);
        assert_eq!(info.sampled_pages, Some(64));
        assert_eq!(info.dirty_rate, Some(0.0));
    }

    #[test]
    fn a_guest_that_has_left_meanwhile_has_no_rate() {
        let measurement = Arc::<DirtyRateMeasurement>::default();
        let means = Means::Log(Box::new(Switch(Arc::default())), 64);
        measurement.start(arguments(1), means, || false).unwrap();
        let info = end(&measurement);
        assert_eq!(info.error_desc.as_deref(), Some(NOT_HERE));
    }

    #[test]
    fn a_time_out_of_range_is_refused() {
        let measurement = Arc::<DirtyRateMeasurement>::default();
        for seconds in [0, 61] {
            let means = Means::Log(Box::new(Switch(Arc::default())), 64);
            let error = measurement
                .start(arguments(seconds), means, || true)
                .unwrap_err();
            assert!(error.contains("1 to 60"), "{error}");
        }
    }
}
