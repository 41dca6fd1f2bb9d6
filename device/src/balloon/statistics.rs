// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory statistics of the guest.
//!
//! The guest's driver queues one buffer with its statistics and leaves it with the device. To ask for new ones, the
//! device gives the buffer back, and the driver fills it again.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant, SystemTime};

use spec::balloon::{QueueRole, stat};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory};

use crate::balloon::Balloon;
use crate::vhost_user::rings::{self, Chain, Place};

/// The most bytes of a statistics buffer that are read: more tags than any driver knows.
const MAX_BYTES: usize = 4096;

/// What the guest said about its memory, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    values: BTreeMap<u16, u64>,
    arrived: Instant,
    time: SystemTime,
}

impl Statistics {
    /// Statistics that came at `arrived`. Tags that nobody knows are kept; of a tag that comes twice, the last
    /// value.
    pub fn new(values: impl IntoIterator<Item = (u16, u64)>, arrived: Instant) -> Self {
        Self {
            values: values.into_iter().collect(),
            arrived,
            time: SystemTime::now(),
        }
    }

    /// Reads an array of tags and values.
    fn from_bytes(bytes: &[u8]) -> Self {
        let (entries, _) = bytes.as_chunks::<{ stat::ENTRY_BYTES }>();
        Self::new(entries.iter().map(stat::entry), Instant::now())
    }

    /// The value with `tag` (see [`spec::balloon::stat`]), if the guest gave one.
    pub fn value(&self, tag: u16) -> Option<u64> {
        self.values.get(&tag).copied()
    }

    /// All tags and values, by rising tag.
    pub fn values(&self) -> impl Iterator<Item = (u16, u64)> {
        self.values.iter().map(|(tag, value)| (*tag, *value))
    }

    /// When they came.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// When they came, by the host's clock.
    pub fn time(&self) -> SystemTime {
        self.time
    }
}

/// The device's side of the statistics queue.
#[derive(Debug, Default)]
pub(super) struct StatisticsQueue {
    latest: Option<Statistics>,
    /// The head of the buffer that the guest wants back when new statistics are asked for.
    parked: Option<u16>,
    place: Place,
    interval: Option<Duration>,
    /// When to ask next.
    due: Option<Instant>,
}

impl StatisticsQueue {
    /// The driver has gone: what it said is of no use for the next one.
    pub(super) fn forget_driver(&mut self) {
        self.latest = None;
        self.parked = None;
        self.place = Place::default();
    }
}

impl Balloon {
    /// The guest's newest statistics, if it has sent any since its driver came up.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.stats.latest.as_ref()
    }

    /// How often statistics are asked for.
    pub fn statistics_interval(&self) -> Option<Duration> {
        self.stats.interval
    }

    /// Asks for statistics every `interval` from now on, or no more. 0 counts as no more.
    pub fn set_statistics_interval(&mut self, interval: Option<Duration>) {
        self.stats.interval = interval.filter(|interval| !interval.is_zero());
        self.stats.due = None;
    }

    /// Takes the statistics that the guest has queued and keeps the newest buffer.
    pub(super) fn take_statistics(&mut self) {
        self.notice_new_teller();
        let mut surplus = Vec::new();
        let mut arrived = None;
        let mut bad_buffers = 0;
        let mut parked = self.stats.parked;
        let (Some(ring), Some(memory)) = (self.ring(QueueRole::Stats), &self.memory) else {
            return;
        };
        let result = rings::drain(ring, memory, |chain| {
            surplus.extend(parked.replace(chain.head_index()));
            match read(chain) {
                Some(bytes) => arrived = Some(Statistics::from_bytes(&bytes)),
                None => bad_buffers += 1,
            }
            Chain::Kept
        });
        if let Err(error) = result {
            log::debug!("statistics queue: {error}");
            bad_buffers += 1;
        }
        if let Some(ring) = self.running(QueueRole::Stats) {
            self.stats.place.leave(&ring);
        }
        self.stats.parked = parked;
        self.counters.bad_buffers += bad_buffers;
        self.give_back(QueueRole::Stats, &surplus);
        if let Some(statistics) = arrived {
            self.counters.statistics += 1;
            self.target.hear(&statistics, self.config.actual);
            self.publish_target();
            self.stats.latest = Some(statistics);
        }
    }

    /// The queue is being stopped: what it holds is the device's to return.
    pub(super) fn stop_statistics(&mut self) {
        self.give_back_statistics();
        self.stats.place.stop();
    }

    /// Gives the parked buffer back: the guest fills it anew when it runs.
    fn give_back_statistics(&mut self) {
        if let Some(head) = self.stats.parked.take() {
            self.give_back(QueueRole::Stats, &[head]);
        }
    }

    /// A new driver's ring does not know the buffer of an earlier one, and has not said anything yet.
    fn notice_new_teller(&mut self) {
        if let Some(ring) = self.running(QueueRole::Stats)
            && self.stats.place.is_new(&ring)
        {
            self.stats.latest = None;
            self.stats.parked = None;
        }
    }

    /// Asks for statistics if it is time; when it is time again.
    pub(super) fn poll_statistics(&mut self, now: Instant) -> Option<Instant> {
        let interval = self.stats.interval?;
        let due = *self.stats.due.get_or_insert(now);
        if now < due {
            return Some(due);
        }
        if self.running(QueueRole::Stats).is_some() {
            self.notice_new_teller();
            self.give_back_statistics();
        }
        // A guest that has not answered is not asked twice; it has until the next time.
        self.stats.due = now.checked_add(interval);
        self.stats.due
    }
}

/// The bytes of a statistics buffer, or `None` if it is not one.
fn read<M>(chain: DescriptorChain<M>) -> Option<Vec<u8>>
where
    M: Deref,
    M::Target: GuestMemory + Sized,
{
    let mut bytes = Vec::new();
    let mut chain = chain;
    let mut has_end = false;
    while bytes.len() < MAX_BYTES
        && let Some(descriptor) = chain.next()
    {
        has_end = !descriptor.has_next();
        if descriptor.is_write_only() {
            return None;
        }
        let at = bytes.len();
        bytes.resize((at + descriptor.len() as usize).min(MAX_BYTES), 0);
        chain
            .memory()
            .read_slice(&mut bytes[at..], descriptor.addr())
            .ok()?;
    }
    let whole = has_end && bytes.len().is_multiple_of(stat::ENTRY_BYTES);
    (whole || bytes.len() == MAX_BYTES).then_some(bytes)
}
