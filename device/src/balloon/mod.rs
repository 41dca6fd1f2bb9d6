// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device: what the guest has negotiated, and its queues.
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | the features that the device offers |
//! | [`config_space`] | what guest and host tell each other beside the queues |
//! | [`state`] | what migrates |
//! | [`inflate`] | pages that the guest puts into the balloon and takes out again |
//! | [`pfn`] | their numbers, made into ranges |
//! | [`page_set`] | which pages are in the balloon |
//! | [`reporting`] | memory that the guest does not use now |
//! | [`discard`] | giving memory back to the host |
//! | [`statistics`] | what the guest says about its memory |
//! | [`target`] | how many pages the guest is asked for |
//! | [`counters`] | what the balloon has done |

pub mod config_space;
pub mod counters;
pub mod discard;
pub mod inflate;
pub mod options;
pub mod page_set;
pub mod pfn;
pub mod reporting;
pub mod state;
pub mod statistics;
pub mod target;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::PageRange;
use spec::balloon::{CommandId, Config, QueueRole, feature};
use spec::control::{HintHolder, RoundEnd};
use spec::hint_map::{HintMap, HintPhase};
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use crate::agent::collector::Agent;
use crate::balloon::config_space::News;
use crate::balloon::counters::Counters;
use crate::balloon::discard::Discarder;
use crate::balloon::options::Options;
use crate::balloon::page_set::PageSet;
use crate::balloon::statistics::StatisticsQueue;
use crate::balloon::target::Target;
use crate::hints::latency::HintLatency;
use crate::hints::person::{Hold, ROUND_LIMIT};
use crate::hints::queue::HintSink;
use crate::hints::shared_map::SharedMap;
use crate::hints::state_machine::Hinting;
use crate::trace::Trace;
use crate::vhost_user::config_channel::ConfigChannel;
use crate::vhost_user::dirty_log::DirtyLog;
use crate::vhost_user::rings::{self, Chain, Memory, Place, Ring};

/// The longest queue that a front end may set up: Linux keeps one entry a hint block in flight.
pub const MAX_QUEUE_SIZE: usize = 1024;
/// Features of the front end, not of the guest: the dirty log and the protocol features.
const FRONT_END_FEATURES: u64 = VhostUserVirtioFeatures::LOG_ALL.bits() | PROTOCOL_FEATURES;
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The balloon. It outlives its front ends.
pub struct Balloon {
    options: Options,
    channel: Arc<ConfigChannel>,
    /// The guest has not been told of the last change of its configuration.
    guest_to_be_told: bool,
    /// What has become of what it was told last.
    news: News,
    /// What the front end acknowledged for the guest.
    pub(crate) features: u64,
    /// Without the command id, which is [`Hinting`]'s.
    config: Config,
    target: Target,
    /// The pages in the balloon.
    ballooned: PageSet,
    /// Pages that were given back to the host because this guest reported them; some are in use again by now.
    reported: PageSet,
    inflate_place: Place,
    hint_place: Place,
    stats: StatisticsQueue,
    counters: Counters,
    pub(crate) hinting: Hinting,
    /// How long hints take.
    pub(crate) latency: HintLatency,
    /// Who tells free pages besides the driver.
    pub(crate) agent: Agent,
    /// For whom the guest hints.
    pub(crate) hold: Hold,
    /// How long a person's round may last.
    pub(crate) round_limit: Option<Duration>,
    pub(crate) map: Option<Arc<HintMap<SharedMap>>>,
    memory: Option<Memory>,
    /// The whole pages of each memory region, rising.
    regions: Vec<PageRange>,
    discarder: Discarder,
    pub(crate) trace: Trace,
    /// The front end's rings, once an event has shown them.
    rings: Vec<Ring>,
    /// The hint queue has run since the front end came.
    hint_queue_seen: bool,
}

/// Where the command ids of this device begin. What a guest had queued for a device that died, or its agent had
/// sent, carries an id of that one's; the new one must not use it again.
fn seed() -> u32 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(4) => u32::from_le_bytes(bytes),
        // So early in the life of a machine no other device of its kind has died.
        _ => 0,
    }
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon")
            .field("features", &self.features)
            .field("config", &self.config)
            .field("hinting", &self.hinting)
            .field("regions", &self.regions)
            .finish_non_exhaustive()
    }
}

impl Balloon {
    /// A balloon that tells its front end of configuration changes through `channel`.
    pub fn new(options: Options, channel: Arc<ConfigChannel>) -> Self {
        Self {
            options,
            channel,
            guest_to_be_told: false,
            news: News::default(),
            features: 0,
            config: Config::default(),
            target: Target::default(),
            ballooned: PageSet::default(),
            reported: PageSet::default(),
            inflate_place: Place::default(),
            hint_place: Place::default(),
            stats: StatisticsQueue::default(),
            counters: Counters::default(),
            hinting: Hinting::after(CommandId::spread(seed())),
            latency: HintLatency::default(),
            agent: Agent::default(),
            hold: Hold::default(),
            round_limit: Some(ROUND_LIMIT),
            map: None,
            memory: None,
            regions: Vec::new(),
            discarder: Discarder::default(),
            trace: Trace::default(),
            rings: Vec::new(),
            hint_queue_seen: false,
        }
    }

    /// Records what the balloon does from now on in `trace`.
    pub fn record_in(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// The feature bits that the device offers.
    pub fn offered_features(&self) -> u64 {
        self.options.features()
    }

    /// The pages that are in the balloon now, as far as the device has seen them go in: since the driver came
    /// up, or the front end connected.
    pub fn ballooned(&mut self) -> &PageSet {
        self.notice_new_driver();
        &self.ballooned
    }

    /// The pages that went back to the host because the guest reported them, since its driver came up: those of
    /// 8 TiB at most. No one says when the guest takes one again: those that are holes of the memory files still are
    /// what was reported.
    pub fn reported(&self) -> &PageSet {
        &self.reported
    }

    /// What the balloon has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How long hints take.
    pub fn hint_latency(&self) -> &HintLatency {
        &self.latency
    }

    /// Does what is due by now; when to be called again, if that is known.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        let next = [
            self.poll_statistics(now),
            self.await_agent(now),
            self.end_overdue_round(now),
        ];
        next.into_iter().flatten().min()
    }

    /// The front end acknowledged `features` for the guest.
    pub fn acknowledge(&mut self, features: u64) {
        // Turning the dirty log on or off is no reset; neither is saying the same again, or for the first time.
        let before = self.features & !FRONT_END_FEATURES;
        if before != 0 && before != features & !FRONT_END_FEATURES {
            self.forget_driver();
        }
        if before != 0 && features & PROTOCOL_FEATURES == 0 {
            // A front end without protocol features (User Mode Linux) does not stop the rings of a driver that goes
            // away. This is how it says that one comes: it will set up its rings anew.
            self.forget_driver();
            self.rings.iter().for_each(rings::abandon);
        }
        self.features = features;
    }

    /// Guest memory is `memory` from now on.
    pub fn set_memory(&mut self, memory: Memory) {
        self.discarder = Discarder::new(&memory).recorded(&self.trace);
        self.regions = self.discarder.regions();
        self.ballooned.keep_only(&self.regions);
        self.reported.keep_only(&self.regions);
        self.memory = Some(memory);
        self.publish_target();
    }

    /// The queue with number `index` has something for the device, or has just been started. `rings` are all
    /// of the front end's.
    pub fn queue_event(&mut self, index: usize, rings: &[Ring]) {
        if self.rings.is_empty() {
            self.rings = rings.to_vec();
        }
        self.notice_new_driver();
        match self.options.numbering.role(index, self.features) {
            Some(QueueRole::FreePageHint) => {
                self.notice_hint_queue(index);
                self.take_hints();
            }
            Some(QueueRole::Inflate | QueueRole::Deflate) => {
                if self.take_turn_of_pages()
                    && let Some(ring) = self.rings.get(index)
                {
                    ring.kick_again();
                }
            }
            Some(QueueRole::Stats) => self.take_statistics(),
            Some(QueueRole::Reporting) => self.take_reports(),
            None => {}
        }
        if self.guest_to_be_told {
            self.tell_guest();
        }
    }

    /// The queue with number `index` is being stopped: what the guest has queued there is done first. Only hints
    /// stay where they are, as none is needed. The statistics buffer is the device's to return.
    pub fn queue_stops(&mut self, index: usize) {
        let Some(ring) = self.rings.get(index).cloned() else {
            return;
        };
        let role = self.options.numbering.role(index, self.features);
        rings::before_it_stops(&ring, || match role {
            Some(QueueRole::Inflate) => {
                self.take_pages();
                self.inflate_place.stop();
            }
            Some(QueueRole::Deflate) => self.take_pages(),
            Some(QueueRole::Stats) => self.stop_statistics(),
            Some(QueueRole::Reporting) => self.take_reports(),
            Some(QueueRole::FreePageHint) => self.hint_place.stop(),
            None => {}
        });
    }

    /// Guest memory: the whole pages of each region, in rising order.
    pub fn regions(&self) -> &[PageRange] {
        &self.regions
    }

    /// The queue with number `index` logs what is written to its used ring as written at `address`, or not apart.
    pub fn log_used_ring(&self, index: usize, log: &Arc<DirtyLog>, address: Option<u64>) {
        if let Some(ring) = self.rings.get(index) {
            ring.set_used_log(log, address);
        }
    }

    /// Whether any ring is started, enabled or not: if none is, the device is suspended.
    pub fn is_started(&self) -> bool {
        self.rings.iter().any(rings::is_started)
    }

    /// Whether any ring runs.
    pub fn is_running(&self) -> bool {
        self.rings.iter().any(rings::runs)
    }

    /// The guest has been reset. Its rings are stopped, and what it had queued is left alone: its memory is used for
    /// something else by now.
    pub fn reset(&mut self) {
        self.rings.iter().for_each(rings::abandon);
        self.config.actual = 0;
        self.config.poison_val = 0;
        self.forget_driver();
    }

    /// The front end has hung up: lets go of its memory and rings. What the guest wrote into the configuration
    /// space stands, as it may be the same guest that comes again, and it would not write it again.
    pub fn front_end_gone(&mut self) {
        self.channel.clear();
        self.forget_driver();
        self.memory = None;
        self.regions.clear();
        self.discarder = Discarder::default();
        self.rings.clear();
        self.hint_queue_seen = false;
    }

    /// Whether the guest has taken the feature with number `bit`.
    pub(crate) fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// What the guest fills its free pages with.
    pub(crate) fn poison(&self) -> u32 {
        if self.has(feature::PAGE_POISON) {
            self.config.poison_val
        } else {
            0
        }
    }

    /// The ring with `role`, if the guest has such a queue and a ring has run.
    pub(crate) fn ring(&self, role: QueueRole) -> Option<&Ring> {
        self.rings
            .get(self.options.numbering.index(role, self.features)?)
    }

    /// The ring with `role`, if it runs.
    fn running(&self, role: QueueRole) -> Option<Ring> {
        self.ring(role).filter(|ring| rings::runs(ring)).cloned()
    }

    /// Takes what the guest has queued on the hint queue up to now.
    pub(crate) fn take_hints(&mut self) {
        let index = self
            .options
            .numbering
            .index(QueueRole::FreePageHint, self.features);
        let (Some(ring), Some(memory)) =
            (index.and_then(|index| self.rings.get(index)), &self.memory)
        else {
            return;
        };
        let (begin, hints) = (Instant::now(), self.hinting.status().hints);
        let mut sink = HintSink::new(
            &mut self.hinting,
            self.map.as_deref(),
            &self.regions,
            MAX_QUEUE_SIZE as u32,
        );
        if self.hold.holder == HintHolder::Migrator {
            sink = sink.recorded(&self.trace);
        }
        let result = rings::drain(ring, memory, |chain| {
            sink.chain(chain);
            Chain::Used
        });
        if let Err(error) = result {
            log::debug!("hint queue: {error}");
            self.hinting.broken_chain();
        }
        self.hint_place.leave(ring);
        let hints = self.hinting.status().hints - hints;
        self.latency.batch(begin, Instant::now(), hints);
        self.publish_phase();
    }

    /// A front end that starts a hint queue which has been used before has a guest that may hold pages which it hinted to a
    /// device that is gone, and nobody else tells it to take them back.
    fn notice_hint_queue(&mut self, index: usize) {
        if std::mem::replace(&mut self.hint_queue_seen, true) || self.hinting.epoch() != 0 {
            return;
        }
        if self
            .rings
            .get(index)
            .zip(self.memory.as_ref())
            .is_some_and(|(ring, memory)| !rings::is_at_start(ring, memory))
        {
            self.hinting.done();
            self.guest_to_be_told = true;
        }
    }

    fn forget_driver(&mut self) {
        self.features = 0;
        self.stats.forget_driver();
        self.target.start_anew();
        self.ballooned.clear();
        self.reported.clear();
        self.inflate_place = Place::default();
        self.hint_place = Place::default();
        self.end_round(RoundEnd::Reset);
        self.forget_map_of_person();
        self.hinting.reset();
        self.agent.stop();
        self.publish_phase();
        self.publish_target();
    }

    /// A new driver knows nothing of pages that an earlier one put into the balloon, or reported: it may use them
    /// already. One that has been stopped and goes on does not. It is the same with what the earlier one has hinted.
    pub(crate) fn notice_new_driver(&mut self) {
        if let Some(ring) = self.running(QueueRole::Inflate)
            && self.inflate_place.is_new(&ring)
        {
            self.ballooned.clear();
            self.reported.clear();
        }
        let answered = [HintPhase::Running, HintPhase::Finished].contains(&self.hinting.phase());
        if let Some(ring) = self.running(QueueRole::FreePageHint)
            && self.hint_place.is_new(&ring)
            && answered
        {
            self.end_answered_round();
        }
    }

    /// The driver that answered has gone. The next one may have read the command id already: it is told that the
    /// person's round is over; a migrator will say so itself.
    fn end_answered_round(&mut self) {
        if self.end_round(RoundEnd::Reset) {
            self.hinting.done();
        } else {
            self.hinting.reset();
        }
        self.publish_phase();
        self.tell_guest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKEN: u64 = 1 << feature::VERSION_1 | 1 << feature::STATS_VQ;

    fn balloon() -> Balloon {
        Balloon::new(Options::default(), Arc::default())
    }

    #[test]
    fn two_devices_do_not_begin_with_the_same_command_id() {
        let ids: std::collections::BTreeSet<_> = (0..8)
            .map(|_| balloon().hinting.command_id().get())
            .collect();
        assert!(ids.len() > 1, "{ids:x?}");
        assert!(ids.iter().all(|id| *id >= CommandId::FIRST.get()));
    }

    #[test]
    fn a_driver_that_takes_other_features_is_a_new_one() {
        let mut balloon = balloon();
        balloon.acknowledge(TAKEN);
        balloon.ballooned.insert(PageRange::new(7, 2).unwrap());
        balloon.set_target(9);
        balloon.acknowledge(TAKEN | 1 << feature::PAGE_POISON);
        assert!(balloon.ballooned().is_empty());
        assert_eq!(balloon.wanted(), 9);
    }
}
