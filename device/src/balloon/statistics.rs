// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory statistics.
//!
//! The guest's driver queues one buffer with its statistics and leaves it with the device. To ask for new ones, the
//! device gives the buffer back, and the driver fills it again.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant, SystemTime};

use spec::balloon::{QueueRole, stat};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory};

use crate::balloon::counters::Counters;
use crate::guest::Guest;
use crate::virtqueue::buffers::{self, Chain};
use crate::virtqueue::position::QueuePosition;

/// The most bytes that are read of a statistics buffer: more tags than any driver has.
const MAX_BYTES: usize = 4096;

/// Memory statistics, and the time at which the guest sent them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    values: BTreeMap<u16, u64>,
    arrived: Instant,
    time: SystemTime,
}

impl Statistics {
    /// Statistics that came at `arrived`. Unknown tags are kept. If a tag comes twice, the last value counts.
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

    /// The value with `tag` (see [`spec::balloon::stat`]), if the guest sent one.
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
pub struct StatisticsQueue {
    latest: Option<Statistics>,
    /// The head of the guest's buffer, which is returned to ask for new statistics.
    parked: Option<u16>,
    position: QueuePosition,
    interval: Option<Duration>,
    /// When to ask next.
    due: Option<Instant>,
    counters: Counters,
}

impl StatisticsQueue {
    /// The guest's newest statistics, if it has sent any since its driver came up.
    pub fn latest(&self) -> Option<&Statistics> {
        self.latest.as_ref()
    }

    /// How often statistics are asked for.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// What the queue has brought.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Asks for statistics every `interval` from now on, or no more. 0 counts as no more.
    pub fn set_interval(&mut self, interval: Option<Duration>) {
        self.interval = interval.filter(|interval| !interval.is_zero());
        self.due = None;
    }

    /// Takes the statistics that the guest has queued and keeps the newest buffer. Returns the statistics, if there are
    /// any.
    pub fn take(&mut self, guest: &Guest) -> Option<&Statistics> {
        self.notice_new_driver(guest);
        let mut surplus = Vec::new();
        let mut arrived = None;
        let (ring, memory) = guest.queue(QueueRole::Stats)?;
        let result = buffers::drain(ring, memory, |chain| {
            surplus.extend(self.parked.replace(chain.head_index()));
            match read(chain) {
                Some(bytes) => arrived = Some(Statistics::from_bytes(&bytes)),
                None => self.counters.bad_buffers += 1,
            }
            Chain::Kept
        });
        if let Err(error) = result {
            log::debug!("statistics queue: {error}");
            self.counters.bad_buffers += 1;
        }
        if ring.runs() {
            self.position.leave(ring);
        }
        guest.give_back(QueueRole::Stats, &surplus);
        self.counters.statistics += u64::from(arrived.is_some());
        self.latest = Some(arrived?);
        self.latest()
    }

    /// The queue is being stopped: returns the buffer.
    pub fn stop(&mut self, guest: &Guest) {
        self.give_back(guest);
        self.position.stop();
    }

    /// Asks for statistics if it is time. Returns when it is time again.
    pub fn poll(&mut self, guest: &Guest, now: Instant) -> Option<Instant> {
        let interval = self.interval?;
        let due = *self.due.get_or_insert(now);
        if now < due {
            return Some(due);
        }
        if guest.running(QueueRole::Stats).is_some() {
            self.notice_new_driver(guest);
            self.give_back(guest);
        }
        // A guest that has not answered yet is not asked again.
        self.due = now.checked_add(interval);
        self.due
    }

    /// The driver has gone: its statistics do not apply to the next one.
    pub fn forget_driver(&mut self) {
        self.latest = None;
        self.parked = None;
        self.position = QueuePosition::default();
    }

    /// Returns the buffer: the guest fills it again when it runs.
    fn give_back(&mut self, guest: &Guest) {
        if let Some(head) = self.parked.take() {
            guest.give_back(QueueRole::Stats, &[head]);
        }
    }

    /// A new driver has sent no statistics yet, and an earlier driver's buffer is not in its ring.
    fn notice_new_driver(&mut self, guest: &Guest) {
        if let Some(ring) = guest.running(QueueRole::Stats)
            && self.position.notice_new_ring(ring)
        {
            self.latest = None;
            self.parked = None;
        }
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
