// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon device as a source of free page hints (virtio 1.2, section 5.5.6.5).
//!
//! The host asks for hints with a command id in the configuration space. The driver answers with a round on the hint
//! queue: the id, one buffer for each run of free pages, and STOP. The host may end the round early. DONE means that the
//! guest may use the hinted pages again.

use core::fmt;

use spec::PageRange;
use spec::balloon::{Command, CommandId, Config, QueueNumbering, QueueRole, feature};

use crate::dma::DmaRegion;
use crate::mmio::{INTERRUPT_CONFIG, MAGIC, Register, Registers, VERSION, status};
use crate::queue::{MAX_SIZE, Queue, QueueError, QueueLayout};

/// The most pages of one hint: 4 MiB, as in Linux, so that every device accepts it.
pub const MAX_HINT_PAGES: u64 = 1024;

/// Descriptors of a queue that the device requires and the driver does not use.
const IDLE_QUEUE_SIZE: u16 = 4;
/// The virtio device id of a balloon.
const DEVICE_ID: u32 = 5;
/// After this many hints the device is notified even if more follow.
const HINTS_A_NOTIFICATION: u32 = 32;

/// Why there is no balloon for hints. A guest can run without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// There is no virtio-mmio device at the address.
    NoDevice,
    /// The device has another version of virtio-mmio.
    Version(u32),
    /// The device is not a balloon; this is its id.
    NotABalloon(u32),
    /// The device does not offer hinting, or is older than virtio 1.0; these are its features.
    NoHinting(u64),
    /// The device did not accept a subset of the features that it offered.
    FeaturesRefused,
    /// The device lacks a required queue; this is its number.
    NoQueue(u32),
    /// The memory is too small for the rings: [`Balloon::MEMORY_BYTES`] are enough for every device.
    NoMemory,
}

/// Why a step of a round failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundError {
    /// The device has not used its buffers yet. Try again later.
    Full,
    /// More than [`MAX_HINT_PAGES`] at once, or an address that does not fit 64 bits.
    Range,
    /// A round is open already.
    Open,
    /// No round is open.
    NotOpen,
    /// The device broke the rules of its queue. It must not be used again.
    Broken,
}

/// A balloon device that accepts free page hints.
#[derive(Debug)]
pub struct Balloon<R: Registers> {
    registers: R,
    features: u64,
    hints: Queue,
    hint_queue: u32,
    round_open: bool,
    /// The last result of [`Balloon::poll`].
    command: Option<Command>,
    /// Buffers of which the device was not notified yet.
    unannounced: u32,
}

impl<R: Registers> Balloon<R> {
    /// Bytes that the rings need at most.
    pub const MEMORY_BYTES: usize = {
        let (Some(idle), Some(hints)) = (
            QueueLayout::new(u32::MAX, IDLE_QUEUE_SIZE),
            QueueLayout::new(u32::MAX, MAX_SIZE),
        ) else {
            panic!("neither size is 0")
        };
        QueueNumbering::MAX_QUEUES * idle.bytes() + hints.bytes()
    };

    /// Sets up the device behind `registers`, with its rings in `memory`, which is zero.
    ///
    /// `poison` is the value with which the guest fills its free pages, if it does. The driver then negotiates the feature,
    /// too. A host does not ask a guest for hints whose poison value is not 0, because it could not restore the value.
    ///
    /// The driver uses no other features: it never inflates the balloon, and its queues are numbered densely
    /// ([`QueueNumbering::Dense`]).
    ///
    /// # Errors
    /// [`ProbeError`]. If there is a device, its status then has FAILED set.
    pub fn new(
        mut registers: R,
        memory: DmaRegion,
        poison: Option<u32>,
    ) -> Result<Self, ProbeError> {
        identify(&registers)?;
        registers.write(Register::Status, 0);
        registers.write(Register::Status, status::ACKNOWLEDGE | status::DRIVER);
        match set_up(&mut registers, memory, poison) {
            Ok((features, hint_queue, hints)) => Ok(Self {
                registers,
                features,
                hints,
                hint_queue,
                round_open: false,
                command: None,
                unannounced: 0,
            }),
            Err(error) => {
                registers.write(Register::Status, status::FAILED);
                Err(error)
            }
        }
    }

    /// The features agreed on, one bit each ([`feature`]).
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// The host's command, if it has changed. Call this often, during a round, too: at [`Command::Stop`] and at another id
    /// the round must be ended at once.
    pub fn poll(&mut self) -> Option<Command> {
        self.announce();
        let changed = self.registers.read(Register::InterruptStatus) & INTERRUPT_CONFIG != 0;
        if changed {
            // Acknowledge first: a change after the read below sets the bit again.
            self.registers
                .write(Register::InterruptAck, INTERRUPT_CONFIG);
        }
        // The device need not interrupt for a command from before the driver's start.
        if self.command.is_some() && !changed {
            return None;
        }
        let command = Command::from_raw(self.registers.read_config(Config::CMD_ID));
        if self.command == Some(command) {
            return None;
        }
        self.command = Some(command);
        Some(command)
    }

    /// Starts to answer the request with this id.
    ///
    /// Hint only pages that are free now or later: a page that was free before the host asked may have been in use since.
    ///
    /// # Errors
    /// [`RoundError::Open`], [`RoundError::Full`], [`RoundError::Broken`].
    pub fn begin_round(&mut self, id: CommandId) -> Result<(), RoundError> {
        if self.round_open {
            return Err(RoundError::Open);
        }
        self.hints.push_word(id.get())?;
        self.round_open = true;
        self.unannounced += 1;
        Ok(())
    }

    /// Tells the host that the pages are free. Their content is lost from now on. The guest need not hold them back: a page
    /// that the guest reuses and writes is safe.
    ///
    /// # Errors
    /// [`RoundError`]; the range was then not hinted.
    pub fn hint(&mut self, range: PageRange) -> Result<(), RoundError> {
        if !self.round_open {
            return Err(RoundError::NotOpen);
        }
        if range.count() > MAX_HINT_PAGES || range.end() > u64::MAX >> spec::PAGE_SHIFT {
            return Err(RoundError::Range);
        }
        let address = range.first() << spec::PAGE_SHIFT;
        let pushed = self.hints.push_writable(address, range.bytes() as u32);
        self.unannounced += u32::from(pushed.is_ok());
        if pushed.is_err() || self.unannounced >= HINTS_A_NOTIFICATION {
            self.announce();
        }
        Ok(pushed?)
    }

    /// Ends the round, because everything was hinted or the host wants no more.
    ///
    /// # Errors
    /// [`RoundError::NotOpen`], [`RoundError::Full`] (the round is then still open),
    /// [`RoundError::Broken`].
    pub fn end_round(&mut self) -> Result<(), RoundError> {
        if !self.round_open {
            return Err(RoundError::NotOpen);
        }
        self.hints.push_word(Command::STOP)?;
        self.round_open = false;
        self.unannounced += 1;
        self.announce();
        Ok(())
    }

    /// Notifies the device of its new buffers.
    fn announce(&mut self) {
        if self.unannounced > 0 && self.hints.wants_notification() {
            self.registers.write(Register::QueueNotify, self.hint_queue);
        }
        self.unannounced = 0;
    }
}

impl<R: Registers> Drop for Balloon<R> {
    /// Resets the device. After that it does not access the rings.
    fn drop(&mut self) {
        self.registers.write(Register::Status, 0);
    }
}

fn identify<R: Registers>(registers: &R) -> Result<(), ProbeError> {
    if registers.read(Register::Magic) != MAGIC {
        return Err(ProbeError::NoDevice);
    }
    match registers.read(Register::Version) {
        VERSION => {}
        other => return Err(ProbeError::Version(other)),
    }
    match registers.read(Register::DeviceId) {
        DEVICE_ID => Ok(()),
        0 => Err(ProbeError::NoDevice),
        other => Err(ProbeError::NotABalloon(other)),
    }
}

/// Sets the device up: features, queues, poison value.
fn set_up<R: Registers>(
    registers: &mut R,
    memory: DmaRegion,
    poison: Option<u32>,
) -> Result<(u64, u32, Queue), ProbeError> {
    let features = negotiate(registers, poison.is_some())?;
    let (hint_queue, hints) = set_up_queues(registers, memory, features)?;
    if let Some(value) = poison.filter(|_| features & (1 << feature::PAGE_POISON) != 0) {
        registers.write_config(Config::POISON, value);
    }
    let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    registers.write(Register::Status, ready);
    Ok((features, hint_queue, hints))
}

fn negotiate<R: Registers>(registers: &mut R, poison: bool) -> Result<u64, ProbeError> {
    let mut offered = 0;
    for half in 0..2 {
        registers.write(Register::DeviceFeaturesSelect, half);
        offered |= u64::from(registers.read(Register::DeviceFeatures)) << (32 * half);
    }
    let needed = 1 << feature::VERSION_1 | 1 << feature::FREE_PAGE_HINT;
    if offered & needed != needed {
        return Err(ProbeError::NoHinting(offered));
    }
    let wanted = needed | u64::from(poison) << feature::PAGE_POISON;
    let features = offered & wanted;
    for half in 0..2 {
        registers.write(Register::DriverFeaturesSelect, half);
        registers.write(Register::DriverFeatures, (features >> (32 * half)) as u32);
    }
    let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    registers.write(Register::Status, ok);
    if registers.read(Register::Status) & status::FEATURES_OK == 0 {
        return Err(ProbeError::FeaturesRefused);
    }
    Ok(features)
}

/// Sets up every queue of the negotiated features. Returns the hint queue and its number.
fn set_up_queues<R: Registers>(
    registers: &mut R,
    mut memory: DmaRegion,
    features: u64,
) -> Result<(u32, Queue), ProbeError> {
    let mut hints = None;
    let numbered = (0..).map_while(|n: u32| {
        let role = QueueNumbering::Dense.role(n as usize, features)?;
        Some((n, role))
    });
    for (number, role) in numbered {
        let wanted = match role {
            QueueRole::FreePageHint => MAX_SIZE,
            _ => IDLE_QUEUE_SIZE,
        };
        registers.write(Register::QueueSelect, number);
        let layout = QueueLayout::new(registers.read(Register::QueueSizeMax), wanted)
            .ok_or(ProbeError::NoQueue(number))?;
        let (rings, rest) = memory.split(layout.bytes()).ok_or(ProbeError::NoMemory)?;
        memory = rest;
        let address = rings.address();
        let queue = Queue::new(rings, layout).ok_or(ProbeError::NoMemory)?;
        enable_queue(registers, layout, address);
        if role == QueueRole::FreePageHint {
            hints = Some((number, queue));
        }
    }
    // `negotiate` has required the queue's feature.
    hints.ok_or(ProbeError::NoHinting(features))
}

/// Tells the device the addresses of the selected queue.
fn enable_queue<R: Registers>(registers: &mut R, layout: QueueLayout, address: u64) {
    let parts = [
        (
            Register::QueueDescriptorsLow,
            Register::QueueDescriptorsHigh,
            0,
        ),
        (
            Register::QueueAvailableLow,
            Register::QueueAvailableHigh,
            layout.available(),
        ),
        (
            Register::QueueUsedLow,
            Register::QueueUsedHigh,
            layout.used(),
        ),
    ];
    registers.write(Register::QueueSize, u32::from(layout.size()));
    for (low, high, offset) in parts {
        let part = address + offset as u64;
        registers.write(low, part as u32);
        registers.write(high, (part >> 32) as u32);
    }
    registers.write(Register::QueueReady, 1);
}

impl From<QueueError> for RoundError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Full => Self::Full,
            QueueError::Broken => Self::Broken,
        }
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => write!(f, "no virtio-mmio device"),
            Self::Version(version) => write!(f, "virtio-mmio version {version}, not {VERSION}"),
            Self::NotABalloon(id) => write!(f, "virtio device {id} is not a balloon"),
            Self::NoHinting(features) => {
                write!(f, "the device has no free page hinting: {features:#x}")
            }
            Self::FeaturesRefused => write!(f, "the device refused its own features"),
            Self::NoQueue(number) => write!(f, "the device has no queue {number}"),
            Self::NoMemory => write!(f, "too little memory for the rings"),
        }
    }
}

impl fmt::Display for RoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the device has not used its buffers yet",
            Self::Range => "the range cannot be hinted in one buffer",
            Self::Open => "a round is open already",
            Self::NotOpen => "no round is open",
            Self::Broken => "the device returned a buffer that it did not have",
        })
    }
}

impl core::error::Error for ProbeError {}
impl core::error::Error for RoundError {}
