// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that writes too fast is throttled, long rounds are harvested before they end, and whatever ends the migration, the
//! guest has its full speed again.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use host_migrator::{
    Clock, Connection, DirtyLog, DirtyLogError, Goals, LogSource, MachineError, Migration,
    MigrationBitmap, MigrationEvent, MigrationHandle, MigrationMonitor, MigrationParams,
    MigrationReport, MigrationState, OwnershipRecord, Source, Throttle, ThrottleParams, receive,
};
use parking_lot::Mutex;
use software_guest::Guest;
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, SoftLog, like};
use spec::PAGE_SIZE;
use spec::trace::check::{Verdict, check_records};
use spec_testing::eventually;

/// Pages of the guest. All are written before each harvest.
const PAGES: u64 = 2000;
/// So slow that no second page is sent.
const TEN_BYTES_A_SECOND: u64 = 10;
/// Fifty pages a second: a round takes longer than a test, and every page that is sent is dirtied again.
const FIFTY_PAGES_A_SECOND: u64 = 50 * PAGE_SIZE;

/// A throttle that remembers what was set.
#[derive(Clone, Default)]
struct SoftThrottle {
    percent: Arc<AtomicU8>,
    /// What each vCPU may dirty; 0: as much as it likes.
    limit: Arc<AtomicU64>,
    fails: bool,
}

impl SoftThrottle {
    fn percent(&self) -> u8 {
        self.percent.load(Ordering::SeqCst)
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::SeqCst)
    }
}

impl Throttle for SoftThrottle {
    fn set(&mut self, percent: u8) -> Result<(), MachineError> {
        if self.fails {
            return Err(MachineError {
                action: "throttle the guest",
                reason: "its vCPUs do not listen".into(),
            });
        }
        self.percent.store(percent, Ordering::SeqCst);
        if percent == 0 {
            self.limit.store(0, Ordering::SeqCst);
        }
        Ok(())
    }

    fn limit_dirtying(&mut self, bytes_a_second: NonZeroU64) -> Result<(), MachineError> {
        self.limit.store(bytes_a_second.get(), Ordering::SeqCst);
        Ok(())
    }
}

/// A log before each harvest of which something happens: the guest writes, or the log fails.
struct Before<F>(SoftLog, F);

impl<F: FnMut() + Send> DirtyLog for Before<F> {
    fn source(&self) -> LogSource {
        self.0.source()
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.0.start()
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        (self.1)();
        self.0.harvest(bitmap)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.0.stop()
    }
}

/// A clock that is a second later each time it is read.
#[derive(Clone, Default)]
struct Seconds(Arc<AtomicU64>);

impl Seconds {
    fn clock(&self) -> Clock {
        let read = self.clone();
        Clock::of(move || Duration::from_secs(read.0.fetch_add(1, Ordering::SeqCst)))
    }

    /// Waits until it was read `count` times more.
    fn pass(&self, count: u64) {
        let end = self.0.load(Ordering::SeqCst) + count;
        eventually("the migration reads the clock", || {
            (self.0.load(Ordering::SeqCst) > end).then_some(())
        });
    }
}

type Slot = Arc<Mutex<Option<host_migrator::MigrationMonitor>>>;

/// A guest, and what a test sees of its migrations.
struct Rig {
    guest: Arc<Guest>,
    throttle: SoftThrottle,
    seconds: Seconds,
    /// Bytes that the link takes in a second from the end of the first round on.
    link: u64,
}

impl Rig {
    fn new(link: u64) -> Self {
        Self {
            link,
            guest: Arc::new(Guest::with_all_written(Memory::new(PAGES, 0))),
            throttle: SoftThrottle::default(),
            seconds: Seconds::default(),
        }
    }

    fn params(&self) -> MigrationParams {
        MigrationParams::default()
            .with_downtime_limit(Duration::ZERO)
            .with_early_harvests(0)
            .with_auto_converge(ThrottleParams::default())
            .with_clock(self.seconds.clock())
    }

    /// Starts a migration of the guest, which writes all its memory before each harvest.
    fn start(&self, params: MigrationParams) -> MigrationHandle {
        self.start_with(params, || ())
    }

    /// As [`Rig::start`]. `at_harvest` is called at each harvest.
    fn start_with(
        &self,
        params: MigrationParams,
        mut at_harvest: impl FnMut() + Send + 'static,
    ) -> MigrationHandle {
        let monitor = Slot::default();
        let (seen, guest) = (Arc::clone(&monitor), Arc::clone(&self.guest));
        let link = self.link;
        let mut first = true;
        let log = Before(self.guest.vcpu_log.clone(), move || {
            if std::mem::take(&mut first) {
                let monitor = eventually("the migration's monitor", || seen.lock().clone());
                monitor.tune(|tuning| tuning.max_bandwidth = Some(link));
            }
            if !guest.machine.is_stopped() {
                guest.memory.pages().for_each(|pfn| guest.write(pfn));
            }
            at_harvest();
        });
        let mut source = Source::new(
            Box::new(software_guest::machine::MachineForEngine(Arc::clone(
                &self.guest.machine,
            ))),
            Arc::<host_migrator::GuestRam>::clone(&self.guest.memory.ram),
        )
        .log(log)
        .log(self.guest.own_log.clone())
        .trace(self.guest.trace.clone())
        .ownership(self.guest.ownership.clone());
        source.throttle = Some(Box::new(self.throttle.clone()));
        let (here, there) = UnixStream::pair().unwrap();
        let ram = like(&self.guest.memory.ram);
        thread::spawn(move || {
            let mut machine = SoftDestination::default();
            let there = Connection::try_from(there).unwrap();
            let ownership = OwnershipRecord::there();
            let _ = receive(there, &ram, &mut machine, &ownership, &mut |_| ());
        });
        let here = Connection::try_from(here).unwrap();
        let handle = Migration::start(source, params, here).unwrap();
        *monitor.lock() = Some(handle.monitor());
        handle
    }

    /// Waits until the second round of `handle` lasts.
    fn second_round(&self, handle: &MigrationHandle) {
        eventually("the second round", || {
            (handle.status().ram.iteration_count == 2).then_some(())
        });
    }

    /// What must hold after any end.
    fn assert_put_back(&self, handle: MigrationHandle, state: MigrationState) {
        eventually("the migration's end", || handle.is_over().then_some(()));
        let status = handle.status();
        assert_eq!(status.status, state, "{:?}", status.error_desc);
        assert_eq!(status.cpu_throttle_percentage, 0);
        assert_eq!((self.throttle.percent(), self.throttle.limit()), (0, 0));
        assert_eq!(status.vcpu_dirty_limit, None);
        let (source, _) = handle.join();
        let (records, dropped) = source.trace.records();
        let verdict = check_records(records, dropped);
        assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
    }
}

/// The published test of background sync (max-bandwidth 10 B/s).
#[test]
fn a_long_iteration_is_harvested_each_interval_and_stays_one_iteration() {
    let rig = Rig::new(TEN_BYTES_A_SECOND);
    let handle = rig.start(rig.params());
    rig.second_round(&handle);
    for count in 2..6 {
        eventually("another harvest in the same iteration", || {
            (handle.status().ram.dirty_sync_count >= count).then_some(())
        });
        assert_eq!(handle.status().ram.iteration_count, 2);
        assert_eq!(handle.status().round, 2);
    }
    handle.monitor().tune(|tuning| {
        tuning.max_bandwidth = None;
        tuning.downtime_limit = Duration::from_secs(3600);
        tuning.auto_converge = None;
    });
    let (_, sent) = handle.join();
    let report = sent.unwrap();
    assert!(report.dirty_sync_count >= 5, "{report:?}");
    assert!(report.totals.syncs >= 3, "{report:?}");
    let rounds = report.rounds.len() as u64;
    assert_eq!(report.iteration_count, rounds);
    assert_eq!(report.dirty_sync_count, rounds - 1 + report.totals.syncs);
}

#[test]
fn the_first_iteration_is_not_harvested_before_its_end() {
    let rig = Rig::new(TEN_BYTES_A_SECOND);
    let handle = rig.start(rig.params().with_max_bandwidth(TEN_BYTES_A_SECOND));
    rig.seconds.pass(100);
    let status = handle.status();
    assert_eq!((status.round, status.ram.dirty_sync_count), (1, 0));
    handle.cancel();
    rig.assert_put_back(handle, MigrationState::Cancelled);
}

#[test]
fn nothing_is_harvested_before_its_time_without_a_throttle_or_an_interval() {
    let rig = Rig::new(TEN_BYTES_A_SECOND);
    let cases = [
        rig.params().with_auto_converge(None),
        rig.params().with_sync_interval(None),
    ];
    for params in cases {
        let handle = rig.start(params);
        rig.second_round(&handle);
        rig.seconds.pass(100);
        let status = handle.status();
        assert_eq!((status.round, status.ram.dirty_sync_count), (2, 1));
        handle.cancel();
        rig.assert_put_back(handle, MigrationState::Cancelled);
    }
}

#[test]
fn harvests_before_their_time_end_when_the_throttle_is_at_its_maximum() {
    let rig = Rig::new(FIFTY_PAGES_A_SECOND);
    let params = ThrottleParams::default();
    let most = ThrottleParams {
        initial: 35,
        max: 35,
        ..params
    };
    let handle = rig.start(rig.params().with_auto_converge(most));
    eventually("the throttle at its maximum", || {
        (handle.status().cpu_throttle_percentage == 35).then_some(())
    });
    rig.seconds.pass(20);
    let count = handle.status().ram.dirty_sync_count;
    rig.seconds.pass(100);
    assert_eq!(handle.status().ram.dirty_sync_count, count);
    // With room to rise they go on.
    let more = ThrottleParams { max: 99, ..most };
    let tune = |params| {
        handle
            .monitor()
            .tune(|tuning| tuning.auto_converge = params);
    };
    tune(Some(more));
    eventually("a further step", || {
        (handle.status().cpu_throttle_percentage > 35).then_some(())
    });
    // A lower maximum, and none, take effect at once.
    tune(Some(most));
    eventually("the lower maximum", || {
        (rig.throttle.percent() == 35).then_some(())
    });
    tune(None);
    eventually("no throttle", || {
        (rig.throttle.percent() == 0).then_some(())
    });
    handle.cancel();
    rig.assert_put_back(handle, MigrationState::Cancelled);
}

/// Also a migration after one that was cancelled begins with nothing of it.
#[test]
fn the_guest_has_its_full_speed_after_a_cancel_and_is_throttled_again_the_next_time() {
    let rig = Rig::new(FIFTY_PAGES_A_SECOND);
    for _ in 0..3 {
        let handle = rig.start(rig.params());
        let first = eventually("a throttled guest", || {
            let percent = handle.status().cpu_throttle_percentage;
            (percent > 0).then_some(percent)
        });
        assert!(first >= 20);
        assert!(handle.cancel());
        rig.assert_put_back(handle, MigrationState::Cancelled);
    }
}

#[test]
fn the_guest_has_its_full_speed_after_it_was_handed_over() {
    let rig = Rig::new(FIFTY_PAGES_A_SECOND);
    let handle = rig.start(rig.params());
    eventually("a throttled guest", || {
        (rig.throttle.percent() > 0).then_some(())
    });
    handle.monitor().tune(|tuning| {
        tuning.max_bandwidth = None;
        tuning.downtime_limit = Duration::from_secs(3600);
    });
    rig.assert_put_back(handle, MigrationState::Completed);
}

#[test]
fn the_guest_has_its_full_speed_after_a_panic() {
    let rig = Rig::new(FIFTY_PAGES_A_SECOND);
    let throttle = rig.throttle.clone();
    let handle = rig.start_with(rig.params(), move || {
        assert!(throttle.percent() < 40, "as the test wants it");
    });
    rig.assert_put_back(handle, MigrationState::Failed);
}

#[test]
fn a_throttle_that_fails_does_not_end_the_migration() {
    let mut rig = Rig::new(TEN_BYTES_A_SECOND);
    rig.throttle.fails = true;
    let handle = rig.start(rig.params());
    rig.second_round(&handle);
    // Two samples are needed for the attempt; without a throttle there is no harvest before its time.
    eventually("the harvests before their time", || {
        (handle.status().ram.dirty_sync_count >= 2).then_some(())
    });
    rig.seconds.pass(100);
    assert_eq!(handle.status().cpu_throttle_percentage, 0);
    handle.cancel();
    eventually("the end", || handle.is_over().then_some(()));
    assert_eq!(handle.status().status, MigrationState::Cancelled);
}

#[test]
fn a_limit_for_each_vcpu_is_set_where_the_throttle_would_begin_and_lifted_at_any_end() {
    let rig = Rig::new(FIFTY_PAGES_A_SECOND);
    let limit = |megabytes: u64| NonZeroU64::new(megabytes << 20);
    let params = || {
        let params = rig.params().with_auto_converge(None);
        params.with_vcpu_dirty_limit(limit(10))
    };
    let is_limited = |bytes: u64| {
        eventually("the limit", || {
            (rig.throttle.limit() == bytes).then_some(())
        });
    };
    let handle = rig.start(params());
    is_limited(10 << 20);
    assert_eq!(rig.throttle.percent(), 0);
    // Another limit takes effect, as does none. Then it can be set again.
    let tune = |limit| {
        handle
            .monitor()
            .tune(|tuning| tuning.vcpu_dirty_limit = limit)
    };
    tune(limit(5));
    is_limited(5 << 20);
    tune(None);
    is_limited(0);
    tune(limit(7));
    is_limited(7 << 20);
    handle.cancel();
    rig.assert_put_back(handle, MigrationState::Cancelled);

    let handle = rig.start(params());
    is_limited(10 << 20);
    handle.monitor().tune(|tuning| {
        tuning.max_bandwidth = None;
        tuning.downtime_limit = Duration::from_secs(3600);
    });
    rig.assert_put_back(handle, MigrationState::Completed);
}

#[test]
fn what_is_left_to_the_engine_stays_within_what_is_allowed_and_is_told() {
    let rig = Rig::new(FIFTY_PAGES_A_SECOND);
    let goals = Goals {
        downtime_limit: Duration::ZERO,
        most_downtime: Duration::ZERO,
        deadline: None,
        max_guest_slowdown: 60,
    };
    let params = rig.params().with_auto_converge(None).with_goals(goals);
    let handle = rig.start(params);
    let percent = eventually("a throttled guest", || {
        Some(rig.throttle.percent()).filter(|percent| *percent > 0)
    });
    assert!(percent <= 60);
    let other = Goals {
        downtime_limit: Duration::from_secs(3600),
        most_downtime: Duration::from_secs(3600),
        ..goals
    };
    handle.monitor().tune(|tuning| {
        tuning.max_bandwidth = None;
        tuning.goals = Some(other);
    });
    let monitor = handle.monitor();
    let (_, sent) = handle.join();
    let report = sent.unwrap();
    assert_told(&monitor, &report);
    assert!(
        (1..=60).contains(&report.throttle_max_percent),
        "{report:?}"
    );
    let decisions = report.decisions.join("\n");
    assert!(decisions.contains("throttles the guest by"), "{decisions}");
    assert!(decisions.contains("stops the guest"), "{decisions}");
    assert_eq!(rig.throttle.percent(), 0);
}

/// Whoever watches the migration has heard of all that is in its report.
fn assert_told(monitor: &MigrationMonitor, report: &MigrationReport) {
    let told: Vec<_> = (monitor.events_after(0, usize::MAX).into_iter())
        .map(|told| told.event)
        .collect();
    let count = |is: fn(&MigrationEvent) -> bool| told.iter().filter(|it| is(it)).count() as u64;
    let passes = count(|it| matches!(it, MigrationEvent::MigrationPass { .. }));
    assert_eq!(passes, report.iteration_count);
    let syncs = count(|it| matches!(it, MigrationEvent::DirtySync { .. }));
    assert_eq!(syncs, report.dirty_sync_count);
    let words = told.iter().filter_map(|it| match it {
        MigrationEvent::Decision { text } => Some(text),
        _ => None,
    });
    assert_eq!(words.cloned().collect::<Vec<_>>(), report.decisions);
    let steps = told.iter().filter_map(|it| match it {
        MigrationEvent::CpuThrottle { percentage } => Some(*percentage),
        _ => None,
    });
    let steps: Vec<u8> = steps.collect();
    assert_eq!(steps.iter().max(), Some(&report.throttle_max_percent));
    assert_eq!(steps.last(), Some(&0), "at full speed in the end");
    let states = told.iter().filter_map(|it| match it {
        MigrationEvent::Migration { status, .. } => Some(*status),
        _ => None,
    });
    use MigrationState::{Active, Completed, Device, PreSwitchover, Setup};
    let all = [Setup, Active, PreSwitchover, Device, Completed];
    assert_eq!(states.collect::<Vec<_>>(), all);
}
