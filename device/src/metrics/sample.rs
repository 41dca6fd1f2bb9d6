// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The values that the metrics show of a device, even if the device does not answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spec::control::DeviceStatus;

use crate::balloon::Balloon;
use crate::balloon::counters::Counters;
use crate::balloon::statistics::Statistics;
use crate::hints::latency::Times;
use crate::vhost_user::backend::Backend;
use crate::vhost_user::link::FrontEndLink;

/// The quantiles that are shown of times.
pub(super) const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 1.0];
/// How long a scrape waits for a device. Other devices wait for their turn meanwhile.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long it waits for a device that did not answer last time.
const BRIEF: Duration = Duration::from_millis(5);

/// A device in the metrics.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Its name.
    pub name: Arc<str>,
    /// Its balloon.
    pub backend: Arc<Backend>,
    /// The connection to its front end.
    pub link: Arc<FrontEndLink>,
}

/// A device, and its last values.
#[derive(Debug)]
pub(super) struct Watched {
    device: Observed,
    last: Mutex<Sample>,
}

impl Watched {
    /// A device without values yet.
    pub(super) fn new(device: Observed) -> Self {
        let nothing = Sample {
            answers: true,
            name: Arc::clone(&device.name),
            ..Sample::default()
        };
        Self {
            last: Mutex::new(nothing),
            device,
        }
    }

    /// The current values; if the balloon's lock is not free in time, the last values.
    pub(super) fn look(&self) -> Sample {
        // Only scrapes hold this lock.
        let mut last = self.last.lock();
        let patience = if last.answers { PATIENCE } else { BRIEF };
        match self.device.backend.balloon_within(patience) {
            Some(mut balloon) => *last = Sample::of(&self.device.name, &mut balloon),
            None => last.answers = false,
        }
        let link = &self.device.link;
        Sample {
            front_ends: link.connections(),
            failed_front_ends: link.failures(),
            connected: link.is_connected(),
            ..last.clone()
        }
    }
}

/// The values of a device at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Whether the balloon answered.
    pub(super) answers: bool,
    pub(super) name: Arc<str>,
    pub(super) front_ends: u64,
    pub(super) failed_front_ends: u64,
    pub(super) connected: bool,
    pub(super) running: bool,
    pub(super) memory_pages: u64,
    pub(super) wanted_pages: u64,
    pub(super) target_pages: u64,
    pub(super) actual_pages: u64,
    pub(super) ballooned_pages: u64,
    pub(super) counters: Counters,
    pub(super) hinting: DeviceStatus,
    pub(super) statistics: Vec<(u16, u64)>,
    pub(super) statistics_arrived: Option<Instant>,
    pub(super) ages: Quantiles,
    pub(super) batches: Quantiles,
}

impl Sample {
    /// The values of `balloon`, without those of its front ends.
    fn of(name: &Arc<str>, balloon: &mut Balloon) -> Self {
        balloon.notice_new_driver();
        let statistics = balloon.statistics();
        Self {
            answers: true,
            name: Arc::clone(name),
            running: balloon.is_running(),
            memory_pages: balloon.guest().pages(),
            statistics_arrived: statistics.map(Statistics::arrived),
            statistics: statistics.map_or_else(Vec::new, |it| it.values().collect()),
            wanted_pages: balloon.wanted().into(),
            target_pages: balloon.target().into(),
            actual_pages: balloon.actual().into(),
            ballooned_pages: balloon.ballooned().count(),
            counters: balloon.counters(),
            hinting: balloon.status(),
            ages: Quantiles::new(balloon.hint_latency().ages()),
            batches: Quantiles::new(balloon.hint_latency().batches()),
            ..Self::default()
        }
    }
}

/// A time in seconds for each of [`QUANTILES`].
#[derive(Clone, Debug, Default)]
pub(super) struct Quantiles(pub(super) [f64; QUANTILES.len()]);

impl Quantiles {
    fn new(times: &Times) -> Self {
        Self(QUANTILES.map(|quantile| times.quantile(quantile).as_secs_f64()))
    }
}
