// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the front end has shown of the guest: the features that it has taken, its memory, its queues, and its configuration
//! space.

use std::fmt;
use std::sync::Arc;

use spec::PageRange;
use spec::balloon::{QueueNumbering, QueueRole, feature};
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::config_channel::ConfigChannel;
use super::config_space::ConfigSpace;
use crate::memory::dirty_log::DirtyLog;
use crate::memory::guest_memory::Memory;
use crate::virtqueue::buffers;
use crate::virtqueue::ring::Ring;

/// Acknowledged by front ends that use the protocol features. Others do not stop the rings of a driver that goes away.
pub const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// Features of the front end, not of the guest: the dirty log and the protocol features.
pub const FRONT_END_FEATURES: u64 = VhostUserVirtioFeatures::LOG_ALL.bits() | PROTOCOL_FEATURES;

/// The state of the guest. Every part of the balloon uses it.
pub struct Guest {
    numbering: QueueNumbering,
    /// What the front end acknowledged for the guest.
    features: u64,
    memory: Option<Memory>,
    /// The whole pages of each memory region, in ascending order.
    regions: Vec<PageRange>,
    /// The front end's rings, once an event has shown them.
    rings: Vec<Ring>,
    /// The configuration space.
    pub config: ConfigSpace,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("features", &self.features)
            .field("regions", &self.regions)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// A guest of which only the numbering of its queues is known. It is told of changes through `channel`.
    pub fn new(numbering: QueueNumbering, channel: Arc<ConfigChannel>) -> Self {
        Self {
            numbering,
            features: 0,
            memory: None,
            regions: Vec::new(),
            rings: Vec::new(),
            config: ConfigSpace::new(channel),
        }
    }

    /// The features that the front end has acknowledged, its own included.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The features that the guest has taken.
    pub fn own_features(&self) -> u64 {
        self.features & !FRONT_END_FEATURES
    }

    /// The front end has acknowledged these features, and no others.
    pub fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    /// Whether the guest has taken the feature with number `bit`.
    pub fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// The value with which the guest fills its free pages.
    pub fn poison(&self) -> u32 {
        if self.has(feature::PAGE_POISON) {
            self.config.config().poison_val
        } else {
            0
        }
    }

    /// Guest memory is `memory` from now on.
    pub fn set_memory(&mut self, memory: Memory) {
        let whole_pages = |region: &_| whole_pages_of(region);
        self.regions = memory.memory().iter().filter_map(whole_pages).collect();
        self.memory = Some(memory);
    }

    /// Whether the front end has lent memory.
    pub fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// The whole pages of each memory region, in ascending order.
    pub fn regions(&self) -> &[PageRange] {
        &self.regions
    }

    /// How many pages the guest has.
    pub fn pages(&self) -> u64 {
        self.regions.iter().map(|region| region.count()).sum()
    }

    /// The parts of `runs` that lie in guest memory. Both are in ascending order.
    pub fn cut_to_memory(&self, runs: &[PageRange]) -> Vec<PageRange> {
        runs.iter()
            .flat_map(|run| {
                self.regions
                    .iter()
                    .filter_map(|region| region.intersection(*run))
            })
            .collect()
    }

    /// An event has shown the front end's `rings`.
    pub fn set_rings(&mut self, rings: &[Ring]) {
        if self.rings.is_empty() {
            self.rings = rings.to_vec();
        }
    }

    /// The role of the queue with number `index`.
    pub fn role(&self, index: usize) -> Option<QueueRole> {
        self.numbering.role(index, self.features)
    }

    /// The ring with number `index`.
    pub fn ring_at(&self, index: usize) -> Option<&Ring> {
        self.rings.get(index)
    }

    /// The ring with `role`, if the guest has such a queue and a ring has run.
    pub fn ring(&self, role: QueueRole) -> Option<&Ring> {
        self.ring_at(self.numbering.index(role, self.features)?)
    }

    /// The ring with `role`, if it runs.
    pub fn running(&self, role: QueueRole) -> Option<&Ring> {
        self.ring(role).filter(|ring| ring.runs())
    }

    /// The ring with `role`, and the memory that its buffers lie in.
    pub fn queue(&self, role: QueueRole) -> Option<(&Ring, &Memory)> {
        self.ring(role).zip(self.memory.as_ref())
    }

    /// Gives the chains at `heads` back to the queue with `role`.
    pub fn give_back(&self, role: QueueRole, heads: &[u16]) {
        if let Some((ring, memory)) = self.queue(role)
            && let Err(error) = buffers::give_back(ring, memory, heads)
        {
            log::debug!("{role:?} queue: {error}");
        }
    }

    /// From now on, the queue with number `index` logs writes to its used ring as writes at `address`; with `None`, it
    /// does not log them apart.
    pub fn log_used_ring(&self, index: usize, log: &Arc<DirtyLog>, address: Option<u64>) {
        if let Some(ring) = self.ring_at(index) {
            ring.set_used_log(log, address);
        }
    }

    /// Whether any ring is started, enabled or not.
    pub fn is_started(&self) -> bool {
        self.rings.iter().any(Ring::is_started)
    }

    /// Whether any ring runs.
    pub fn is_running(&self) -> bool {
        self.rings.iter().any(Ring::runs)
    }

    /// Treats all rings as stopped, without touching what is queued there.
    pub fn abandon_rings(&self) {
        self.rings.iter().for_each(Ring::abandon);
    }

    /// Asks the guest to have `pages` pages in its balloon, and tells it if that is a change.
    pub fn ask_for_pages(&mut self, pages: u32) {
        if self.config.set_target(pages) {
            self.tell();
        }
    }

    /// Tells the guest that its configuration has changed, now or when its rings run again: some front ends do not
    /// survive the message earlier. Returns `false` if the front end cannot be told.
    pub fn tell(&mut self) -> bool {
        if self.is_running() {
            return self.config.tell_now();
        }
        self.config.tell_later();
        true
    }

    /// The front end has hung up: lets go of its memory and rings.
    pub fn front_end_gone(&mut self) {
        self.memory = None;
        self.regions.clear();
        self.rings.clear();
    }
}

/// The whole pages of a region of guest memory, if there are any.
pub fn whole_pages_of(region: &impl GuestMemoryRegion) -> Option<PageRange> {
    PageRange::inside(region.start_addr().0, region.len())
}
