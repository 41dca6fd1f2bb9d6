// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that every client may make: the balloon's target, statistics, status, and rounds of hints.

use std::time::Duration;

use spec::control::{BalloonStatus, Refusal, Reply, Request, Statistics};

use crate::balloon::Balloon;

/// The answer to `request`, which must be a request that people may make.
pub(super) fn answer(request: Request, balloon: &mut Balloon) -> Result<Reply, Refusal> {
    match request {
        Request::SetTarget { pages } => {
            balloon.set_target(pages);
            Ok(Reply::Ok)
        }
        Request::SetStatisticsInterval { milliseconds } => {
            let interval = Duration::from_millis(milliseconds);
            balloon.set_statistics_interval((!interval.is_zero()).then_some(interval));
            Ok(Reply::Ok)
        }
        Request::Statistics => {
            let latest = balloon.statistics().ok_or(Refusal::NoStatistics)?;
            let age = latest.arrived().elapsed();
            Ok(Reply::Statistics(Statistics::new(
                whole_milliseconds(age),
                latest.values(),
            )))
        }
        Request::BalloonStatus => Ok(Reply::BalloonStatus(status(balloon))),
        Request::HintStart => balloon.start_round().map(Reply::HintState),
        Request::HintStop => balloon.stop_round().map(Reply::HintState),
        Request::HintState => Ok(Reply::HintState(balloon.hint_state())),
        _ => Ok(Reply::Status(balloon.status())),
    }
}

fn status(balloon: &mut Balloon) -> BalloonStatus {
    balloon.notice_new_driver();
    let counters = balloon.counters();
    let interval = balloon.statistics_interval();
    BalloonStatus {
        offered: balloon.offered_features(),
        negotiated: balloon.guest().features(),
        connected: !balloon.regions().is_empty(),
        running: balloon.is_running(),
        wanted_pages: balloon.wanted().into(),
        target_pages: balloon.target().into(),
        actual_pages: balloon.actual().into(),
        ballooned_pages: balloon.ballooned().count(),
        memory_pages: balloon.guest().pages(),
        regions: balloon.regions().len() as u64,
        statistics_interval_ms: interval.map_or(0, whole_milliseconds),
        inflated_pages: counters.inflated_pages,
        deflated_pages: counters.deflated_pages,
        reported_pages: counters.reported_pages,
        discarded_bytes: counters.discarded_bytes,
        discards: counters.discards,
        failed_discards: counters.failed_discards,
        out_of_range: counters.out_of_range,
        bad_buffers: counters.bad_buffers,
    }
}

/// Milliseconds, rounded up, so that only an interval of 0 becomes 0.
fn whole_milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
