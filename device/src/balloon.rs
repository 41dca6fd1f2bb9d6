// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device: what the guest has negotiated, its configuration space and its queues.

use std::fmt;
use std::sync::Arc;

use spec::PageRange;
use spec::balloon::{CONFIG_SIZE, Config, QueueNumbering, QueueRole, feature};
use spec::hint_map::HintMap;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use crate::config_channel::ConfigChannel;
use crate::hint_queue::HintSink;
use crate::hinting::Hinting;
use crate::rings::{self, Chain, Memory, Ring};
use crate::shared_map::SharedMap;
use crate::state::DeviceState;

/// The longest queue that a front end may set up: Linux keeps one entry a hint block in flight.
pub const MAX_QUEUE_SIZE: usize = 1024;
/// `VHOST_F_LOG_ALL`: a feature of the front end, not of the guest.
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// What the device offers. Statistics and hints always go together, so that both ways of numbering queues
/// give the hint queue the number 3 if the guest takes both.
pub const FEATURES: u64 = 1 << feature::VERSION_1
    | 1 << feature::STATS_VQ
    | 1 << feature::FREE_PAGE_HINT
    | 1 << feature::PAGE_POISON
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    | LOG_ALL;

/// The balloon. It outlives its front ends.
pub struct Balloon {
    numbering: QueueNumbering,
    channel: Arc<ConfigChannel>,
    /// The guest has not been told of the last change of its configuration.
    guest_to_be_told: bool,
    /// What the front end acknowledged for the guest.
    pub(crate) features: u64,
    /// Without the command id, which is [`Hinting`]'s.
    config: Config,
    pub(crate) hinting: Hinting,
    pub(crate) map: Option<HintMap<SharedMap>>,
    memory: Option<Memory>,
    /// The whole pages of each memory region.
    regions: Vec<PageRange>,
    /// The front end's rings, once an event has shown them.
    rings: Vec<Ring>,
    /// The statistics buffer, which the guest wants back when new statistics are asked for.
    parked_statistics: Option<u16>,
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
    pub fn new(numbering: QueueNumbering, channel: Arc<ConfigChannel>) -> Self {
        Self {
            numbering,
            channel,
            guest_to_be_told: false,
            features: 0,
            config: Config::default(),
            hinting: Hinting::default(),
            map: None,
            memory: None,
            regions: Vec::new(),
            rings: Vec::new(),
            parked_statistics: None,
        }
    }

    /// The front end acknowledged `features` for the guest.
    pub fn acknowledge(&mut self, features: u64) {
        // Turning the dirty log on or off is no reset; neither is saying the same again.
        if (self.features ^ features) & !LOG_ALL != 0 {
            self.reset_hinting();
        }
        self.features = features;
    }

    /// The configuration space as the guest reads it.
    pub fn config_bytes(&self) -> [u8; CONFIG_SIZE] {
        Config {
            free_page_hint_cmd_id: self.hinting.command().to_raw(),
            ..self.config
        }
        .to_bytes()
    }

    /// The guest, or the front end for it, writes to the configuration space. What the guest cannot change
    /// stays as it is: some front ends write the whole space back. `false` if the bytes lie outside it.
    pub fn write_config(&mut self, offset: u32, written: &[u8]) -> bool {
        let mut bytes = self.config_bytes();
        let field = bytes
            .get_mut(offset as usize..)
            .and_then(|rest| rest.get_mut(..written.len()));
        let Some(field) = field else {
            return false;
        };
        field.copy_from_slice(written);
        let config = Config::from_bytes(&bytes);
        self.config.actual = config.actual;
        self.config.poison_val = config.poison_val;
        true
    }

    /// Guest memory is `memory` from now on.
    pub fn set_memory(&mut self, memory: Memory) {
        self.regions = memory
            .memory()
            .iter()
            .filter_map(|region| PageRange::inside(region.start_addr().0, region.len()))
            .collect();
        self.memory = Some(memory);
    }

    /// The queue with number `index` has something for the device, or has just been started. `rings` are all
    /// of the front end's.
    pub fn queue_event(&mut self, index: usize, rings: &[Ring]) {
        if self.rings.is_empty() {
            self.rings = rings.to_vec();
        }
        match self.numbering.role(index, self.features) {
            Some(QueueRole::FreePageHint) => self.take_hints(),
            Some(QueueRole::Stats) => self.park_statistics(index),
            Some(QueueRole::Inflate | QueueRole::Deflate | QueueRole::Reporting) => {
                self.return_buffers(index);
            }
            None => {}
        }
        if self.guest_to_be_told {
            self.tell_guest();
        }
    }

    /// The queue with number `index` has been stopped. What the guest had queued on the hint queue stays
    /// there, as hints are not needed, but the statistics buffer is the device's to return.
    pub fn queue_stopped(&mut self, index: usize) {
        let role = self.numbering.role(index, self.features);
        if role == Some(QueueRole::Stats)
            && let (Some(ring), Some(memory)) = (self.rings.get(index), &self.memory)
            && let Some(head) = self.parked_statistics.take()
            && let Err(error) = rings::give_back(ring, memory, head)
        {
            log::debug!("statistics queue: {error}");
        }
    }

    /// Whether any ring runs.
    pub fn is_running(&self) -> bool {
        self.rings.iter().any(rings::runs)
    }

    /// What migrates.
    pub fn save(&self) -> DeviceState {
        DeviceState {
            num_pages: self.config.num_pages,
            actual: self.config.actual,
            poison_val: self.config.poison_val,
            command_id: self.hinting.command_id(),
        }
    }

    /// Goes on from `state`. The guest may hold hinted pages: it is told to take them back when it runs.
    pub fn restore(&mut self, state: DeviceState) {
        self.config.num_pages = state.num_pages;
        self.config.actual = state.actual;
        self.config.poison_val = state.poison_val;
        self.hinting.restore(state.command_id);
        self.guest_to_be_told = true;
    }

    /// The guest has been reset.
    pub fn reset(&mut self) {
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
        self.rings.clear();
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
        self.rings.get(self.numbering.index(role, self.features)?)
    }

    /// Tells the guest that its configuration has changed, or will when its rings run again: some front ends
    /// do not survive such a message before that. `false` if the front end cannot be told.
    pub(crate) fn tell_guest(&mut self) -> bool {
        let again = std::mem::replace(&mut self.guest_to_be_told, true);
        if !self.is_running() {
            return true;
        }
        match self.channel.config_changed() {
            Ok(()) => self.guest_to_be_told = false,
            // Said once: the guest makes the device try again as often as it likes.
            Err(error) if !again => log::warn!("the guest cannot be told of a change: {error}"),
            Err(_) => {}
        }
        !self.guest_to_be_told
    }

    /// Takes what the guest has queued on the hint queue up to now.
    pub(crate) fn take_hints(&mut self) {
        let index = self.numbering.index(QueueRole::FreePageHint, self.features);
        let (Some(ring), Some(memory)) =
            (index.and_then(|index| self.rings.get(index)), &self.memory)
        else {
            return;
        };
        let mut sink = HintSink::new(
            &mut self.hinting,
            self.map.as_ref(),
            &self.regions,
            MAX_QUEUE_SIZE as u32,
        );
        let result = rings::drain(ring, memory, |chain| {
            sink.chain(chain);
            Chain::Used
        });
        if let Err(error) = result {
            log::debug!("hint queue: {error}");
            self.hinting.broken_chain();
        }
    }

    /// Keeps the newest statistics buffer and gives any other back.
    fn park_statistics(&mut self, index: usize) {
        let mut surplus = Vec::new();
        let parked = &mut self.parked_statistics;
        let (Some(ring), Some(memory)) = (self.rings.get(index), &self.memory) else {
            return;
        };
        let result = rings::drain(ring, memory, |chain| {
            surplus.extend(parked.replace(chain.head_index()));
            Chain::Kept
        });
        let result = surplus
            .into_iter()
            .try_fold((), |(), head| rings::give_back(ring, memory, head))
            .and(result);
        if let Err(error) = result {
            log::debug!("statistics queue: {error}");
        }
    }

    /// Gives every buffer of the queue back: nothing is done with inflated pages.
    fn return_buffers(&mut self, index: usize) {
        let (Some(ring), Some(memory)) = (self.rings.get(index), &self.memory) else {
            return;
        };
        if let Err(error) = rings::drain(ring, memory, |_| Chain::Used) {
            log::debug!("queue {index}: {error}");
        }
    }

    fn forget_driver(&mut self) {
        self.features = 0;
        self.parked_statistics = None;
        self.reset_hinting();
    }

    fn reset_hinting(&mut self) {
        self.hinting.reset();
        if let Some(map) = &self.map {
            map.set_phase(self.hinting.phase());
        }
    }
}
