// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon: the negotiated features, and the sum of its queues.
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | the features that the device offers |
//! | [`counters`] | what the balloon has done |
//! | [`sparse_page_set`] | a set of guest pages |
//! | [`discard`] | giving memory back to the host |
//! | [`inflate`] | pages that the guest puts into the balloon and takes out again |
//! | [`pfn`] | page numbers from the guest, combined into ranges |
//! | [`reporting`] | free page reporting |
//! | [`statistics`] | the guest's memory statistics |
//! | [`target`] | how many pages the guest is asked to give up |
//! | [`device_state`] | the bytes that migrate with the guest |
//! | [`migration`] | saving the state, and going on from it |
//! | [`hint_users`] | the balloon's interface for migrators, people and the guest's agent |

pub mod counters;
pub mod device_state;
pub mod discard;
pub mod hint_users;
pub mod inflate;
pub mod migration;
pub mod options;
pub mod pfn;
pub mod reporting;
pub mod sparse_page_set;
pub mod statistics;
pub mod target;

use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::PageRange;
use spec::balloon::{CONFIG_SIZE, QueueRole};

use crate::balloon::counters::Counters;
use crate::balloon::discard::Discarder;
use crate::balloon::inflate::InflateQueues;
use crate::balloon::options::Options;
use crate::balloon::pfn::PfnBatch;
use crate::balloon::reporting::ReportingQueue;
use crate::balloon::sparse_page_set::SparsePageSet;
use crate::balloon::statistics::{Statistics, StatisticsQueue};
use crate::balloon::target::{AutoShrink, Target};
use crate::guest::Guest;
use crate::guest::config_channel::ConfigChannel;
use crate::guest::state::{FRONT_END_FEATURES, PROTOCOL_FEATURES};
use crate::hints::FreePageHinting;
use crate::memory::dirty_log::DirtyLog;
use crate::memory::guest_memory::Memory;
use crate::trace::Trace;
use crate::virtqueue::ring::Ring;

/// The balloon. It outlives its front ends.
#[derive(Debug)]
pub struct Balloon {
    options: Options,
    guest: Guest,
    target: Target,
    inflate: InflateQueues,
    reporting: ReportingQueue,
    statistics: StatisticsQueue,
    hinting: FreePageHinting,
    discarder: Discarder,
}

impl Balloon {
    /// A balloon that tells its front end of configuration changes through `channel`.
    pub fn new(options: Options, channel: Arc<ConfigChannel>) -> Self {
        Self {
            options,
            guest: Guest::new(options.numbering, channel),
            target: Target::default(),
            inflate: InflateQueues::default(),
            reporting: ReportingQueue::default(),
            statistics: StatisticsQueue::default(),
            hinting: FreePageHinting::default(),
            discarder: Discarder::default(),
        }
    }

    /// Records what the balloon does from now on in `trace`.
    pub fn record_in(&mut self, trace: Trace) {
        self.inflate.record_in(trace.clone());
        self.reporting.record_in(trace.clone());
        self.hinting.record_in(trace.clone());
        self.discarder.record_in(trace);
    }

    /// The feature bits that the device offers.
    pub fn offered_features(&self) -> u64 {
        self.options.features()
    }

    /// The guest, as its front end shows it.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Guest memory: the whole pages of each region, in rising order.
    pub fn regions(&self) -> &[PageRange] {
        self.guest.regions()
    }

    /// The pages that are in the balloon, as far as the device has seen them go in: since the driver came
    /// up, or the front end connected. To be called after [`Balloon::notice_new_driver`].
    pub fn ballooned(&self) -> &SparsePageSet {
        self.inflate.pages()
    }

    /// The pages that went back to the host because the guest reported them, since its driver came up; only pages below
    /// 8 TiB. The guest does not say when it reuses one. A page that is still a hole of the memory file was not reused.
    pub fn reported(&self) -> &SparsePageSet {
        self.reporting.pages()
    }

    /// The balloon's counters.
    pub fn counters(&self) -> Counters {
        let parts = [
            self.inflate.counters(),
            self.reporting.counters(),
            self.statistics.counters(),
        ];
        parts.into_iter().sum()
    }

    /// Does what is due now. Returns when to call this again, if that is known.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        let next = [
            self.statistics.poll(&self.guest, now),
            self.hinting.await_agent(&mut self.guest, now),
            self.hinting.end_overdue_round(&mut self.guest, now),
        ];
        next.into_iter().flatten().min()
    }

    /// The front end acknowledged `features` for the guest.
    pub fn acknowledge(&mut self, features: u64) {
        // It is not a reset if the dirty log is switched, or if the features are the same or the first.
        let before = self.guest.own_features();
        if before != 0 && before != features & !FRONT_END_FEATURES {
            self.forget_driver();
        }
        if before != 0 && features & PROTOCOL_FEATURES == 0 {
            // A front end without protocol features (User Mode Linux) does not stop the rings of a driver that goes away.
            // New features mean that a new driver comes, which will set up its rings again.
            self.forget_driver();
            self.guest.abandon_rings();
        }
        self.guest.set_features(features);
    }

    /// Guest memory is `memory` from now on.
    pub fn set_memory(&mut self, memory: Memory) {
        self.discarder.set_memory(&memory);
        self.guest.set_memory(memory);
        self.inflate.keep_only(self.guest.regions());
        self.reporting.keep_only(self.guest.regions());
        self.target.publish(&mut self.guest);
    }

    /// The queue with number `index` has something for the device, or has just been started. `rings` are all of the
    /// front end's rings.
    pub fn queue_event(&mut self, index: usize, rings: &[Ring]) {
        self.guest.set_rings(rings);
        self.notice_new_driver();
        match self.guest.role(index) {
            Some(QueueRole::FreePageHint) => {
                self.hinting.queue_starts(&mut self.guest);
                self.hinting.take_hints(&self.guest);
            }
            Some(QueueRole::Inflate | QueueRole::Deflate) => {
                if self.take_pages(PfnBatch::is_enough)
                    && let Some(ring) = self.guest.ring_at(index)
                {
                    ring.kick_again();
                }
            }
            Some(QueueRole::Stats) => self.take_statistics(),
            Some(QueueRole::Reporting) => self.reporting.take(&self.guest, &mut self.discarder),
            None => {}
        }
        if self.guest.config.is_untold() {
            self.guest.tell();
        }
    }

    /// The queue with number `index` is being stopped. What the guest has queued there is handled first, except for hints,
    /// which are not needed. The statistics buffer is returned.
    pub fn queue_stops(&mut self, index: usize) {
        let Some(ring) = self.guest.ring_at(index).cloned() else {
            return;
        };
        let role = self.guest.role(index);
        ring.before_it_stops(|| match role {
            Some(QueueRole::Inflate) => {
                self.take_pages(|_| false);
                self.inflate.stop();
            }
            Some(QueueRole::Deflate) => {
                self.take_pages(|_| false);
            }
            Some(QueueRole::Stats) => self.statistics.stop(&self.guest),
            Some(QueueRole::Reporting) => self.reporting.take(&self.guest, &mut self.discarder),
            Some(QueueRole::FreePageHint) => self.hinting.queue_stops(),
            None => {}
        });
    }

    /// From now on, the queue with number `index` logs writes to its used ring as writes at `address`; with `None`, it
    /// does not log them apart.
    pub fn log_used_ring(&self, index: usize, log: &Arc<DirtyLog>, address: Option<u64>) {
        self.guest.log_used_ring(index, log, address);
    }

    /// Whether any ring is started, enabled or not: if none is, the device is suspended.
    pub fn is_started(&self) -> bool {
        self.guest.is_started()
    }

    /// Whether any ring runs.
    pub fn is_running(&self) -> bool {
        self.guest.is_running()
    }

    /// The guest has been reset. Its rings are stopped, and its queued buffers are not touched: their memory may be used for
    /// something else by now.
    pub fn reset(&mut self) {
        self.guest.abandon_rings();
        self.guest.config.set_by_guest(0, 0);
        self.forget_driver();
    }

    /// The front end has disconnected: releases its memory and rings. The guest's writes to the configuration space are
    /// kept, because the same guest may connect again and would not repeat them.
    pub fn front_end_gone(&mut self) {
        self.guest.config.front_end_gone();
        self.forget_driver();
        self.guest.front_end_gone();
        self.discarder.clear();
        self.hinting.front_end_gone();
    }

    /// The guest reads the configuration space.
    pub fn read_config(&mut self) -> [u8; CONFIG_SIZE] {
        self.guest.config.read(self.hinting.command())
    }

    /// The guest, or the front end for it, writes to the configuration space.
    pub fn write_config(&mut self, offset: u32, written: &[u8]) {
        self.guest.config.write(offset, written);
    }

    /// As [`Balloon::write_config`], but for a front end that brings a migrated guest: the host's fields are taken, too,
    /// except the command id, which is part of the device's state.
    pub fn restore_config(&mut self, offset: u32, written: &[u8]) {
        if let Some(pages) = self.guest.config.restore(offset, written) {
            self.target.restore(pages, pages);
        }
    }

    /// The front end has given a socket for configuration changes. The guest is told of the last change, if it has not read
    /// it yet.
    pub fn channel_came(&mut self) {
        if self.guest.config.is_to_be_told_again() {
            self.guest.tell();
        }
    }

    /// Whether the guest has been told of a change that it has not read yet, or is still reading.
    pub fn is_change_unread(&self) -> bool {
        self.guest.config.is_change_unread()
    }

    /// Sets the pages (4 KiB) that are wanted in the balloon. The guest is asked for at most all its memory.
    pub fn set_target(&mut self, pages: u32) {
        self.target.want(pages);
        self.target.publish(&mut self.guest);
    }

    /// Makes the target follow the guest's statistics from now on, or stops that.
    pub fn set_auto_shrink(&mut self, auto_shrink: Option<AutoShrink>) {
        self.target.set_auto_shrink(auto_shrink);
        self.target.publish(&mut self.guest);
    }

    /// Pages (4 KiB) that the host wants in the balloon.
    pub fn wanted(&self) -> u32 {
        self.target.wanted()
    }

    /// Pages (4 KiB) that the guest is asked to have in the balloon.
    pub fn target(&self) -> u32 {
        self.guest.config.config().num_pages
    }

    /// Pages (4 KiB) that the guest says are in the balloon.
    pub fn actual(&self) -> u32 {
        self.guest.config.config().actual
    }

    /// The guest's newest statistics, if it has sent any since its driver came up.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.statistics.latest()
    }

    /// How often statistics are asked for.
    pub fn statistics_interval(&self) -> Option<Duration> {
        self.statistics.interval()
    }

    /// Asks for statistics every `interval` from now on; `None` or 0 stops that.
    pub fn set_statistics_interval(&mut self, interval: Option<Duration>) {
        self.statistics.set_interval(interval);
    }

    /// Forgets what an earlier driver has put into the balloon, reported or hinted, if there is a new one. A round of
    /// hints may end with it.
    pub fn notice_new_driver(&mut self) {
        if self.inflate.notice_new_driver(&self.guest) {
            self.reporting.forget_driver();
        }
        self.hinting.notice_new_driver(&mut self.guest);
    }

    /// Takes what the guest has queued on the inflate and the deflate queue up to now, or as much as `is_enough`. Returns
    /// whether there is more.
    fn take_pages(&mut self, is_enough: fn(&PfnBatch) -> bool) -> bool {
        self.notice_new_driver();
        self.inflate
            .take(&self.guest, &mut self.discarder, is_enough)
    }

    fn take_statistics(&mut self) {
        let actual = self.actual();
        if let Some(statistics) = self.statistics.take(&self.guest) {
            self.target.hear(statistics, actual);
            self.target.publish(&mut self.guest);
        }
    }

    fn forget_driver(&mut self) {
        self.guest.set_features(0);
        self.statistics.forget_driver();
        self.target.start_anew();
        self.inflate.forget_driver();
        self.reporting.forget_driver();
        self.hinting.forget_driver(&mut self.guest);
        self.target.publish(&mut self.guest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::balloon::feature;

    const TAKEN: u64 = 1 << feature::VERSION_1 | 1 << feature::STATS_VQ;

    fn balloon() -> Balloon {
        Balloon::new(Options::default(), Arc::default())
    }

    #[test]
    fn a_driver_that_takes_other_features_is_a_new_one() {
        let mut balloon = balloon();
        balloon.acknowledge(TAKEN);
        let mut pages = SparsePageSet::default();
        pages.insert(PageRange::new(7, 2).unwrap());
        balloon.inflate.restore(pages);
        balloon.set_target(9);
        balloon.acknowledge(TAKEN | 1 << feature::PAGE_POISON);
        assert!(balloon.ballooned().is_empty());
        assert_eq!(balloon.wanted(), 9);
    }

    #[test]
    fn a_target_that_a_front_end_restores_is_what_is_wanted_from_then_on() {
        let mut balloon = balloon();
        balloon.set_target(9);
        balloon.restore_config(0, &[9, 0, 0, 0, 5]);
        let targets = |it: &Balloon| (it.wanted(), it.target(), it.actual());
        assert_eq!(targets(&balloon), (9, 9, 5));
        balloon.restore_config(0, &[4, 0, 0, 0]);
        balloon.target.publish(&mut balloon.guest);
        assert_eq!(targets(&balloon), (4, 4, 5));
        let before = balloon.read_config();
        balloon.restore_config(16, &[7; 4]);
        assert_eq!(balloon.read_config(), before);
    }
}
