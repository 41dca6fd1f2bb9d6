// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon device: the hint queue, the epochs and the hint map, and its control socket.

use crate::pages::{ModelPages, Page, Renaming};
use crate::rule::Clause;
use crate::setup::Clearing;
use crate::state::{Action, Migration, State};

/// The command in the configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    /// No hints are wanted.
    #[default]
    Stop,
    /// Hints are wanted under this id.
    Start(u8),
    /// The guest is to take its pages back.
    Done,
}

/// A buffer on the hint queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    /// The guest's STOP; also the value of an empty entry of the queue.
    #[default]
    Stop,
    /// The guest answers to this id.
    Start(u8),
    /// A page is free.
    Hint(Page),
}

/// A frame of the agent: pages that were free, and an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    pub(crate) id: u8,
    pub(crate) free: ModelPages,
}

const QUEUE_SIZE: usize = 6;

/// The hint queue, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queue {
    length: u8,
    messages: [Message; QUEUE_SIZE],
}

impl Queue {
    pub(crate) fn room(&self) -> usize {
        QUEUE_SIZE - usize::from(self.length)
    }

    pub(crate) fn push(&mut self, message: Message) {
        self.messages[usize::from(self.length)] = message;
        self.length += 1;
    }

    /// The message that the device takes next.
    pub fn first(&self) -> Option<Message> {
        self.messages().first().copied()
    }

    fn messages(&self) -> &[Message] {
        &self.messages[..usize::from(self.length)]
    }

    fn pop(&mut self) -> Option<Message> {
        let first = self.first()?;
        self.messages.rotate_left(1);
        self.messages[QUEUE_SIZE - 1] = Message::default();
        self.length -= 1;
        Some(first)
    }

    fn renamed(&self, names: &Renaming) -> Self {
        Self {
            length: self.length,
            messages: self.messages.map(|message| match message {
                Message::Hint(page) => Message::Hint(names.page(page)),
                other => other,
            }),
        }
    }
}

/// How far the guest is in the open epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// No hint counts.
    #[default]
    Closed,
    /// The guest has not answered yet.
    Requested,
    /// The guest hints.
    Running,
    /// The guest has hinted all it can.
    Finished,
}

/// The control socket between migrator and device, with its message. There is one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Control {
    /// Nothing is under way.
    #[default]
    Quiet,
    /// The migrator asks to open this epoch.
    Open(u8),
    /// The migrator asks to close this epoch.
    Close(u8),
    /// The migrator says that hinting is over.
    Done,
    /// The device has done what it was asked.
    Ok,
    /// The device refuses.
    Refused,
    /// The migrator has hung up, and the device has not noticed yet.
    HungUp,
    /// The device has died, and the migrator has not noticed yet.
    Dead,
    /// There is no connection.
    Down,
}

/// The balloon device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    pub(crate) queue: Queue,
    pub(crate) frame: Option<Frame>,
    pub(crate) command: Command,
    /// The last id in use.
    pub(crate) id: u8,
    pub(crate) phase: Phase,
    /// The open epoch, 0 if none is.
    pub(crate) epoch: u8,
    /// The hint map. The migrator reads it, too.
    pub(crate) map: ModelPages,
    pub(crate) control: Control,
    /// How often the device can still die.
    pub(crate) lives: u8,
}

impl Device {
    /// The id of the open epoch, 0 if none is.
    pub(crate) fn open_id(&self) -> u8 {
        if self.epoch == 0 { 0 } else { self.id }
    }

    /// The destination's device, restored from this one's state. The guest may still hold hinted pages.
    pub(crate) fn restored(&self, rule: crate::Rule) -> Self {
        let mut restored = *self;
        restored.end(if rule.holds(Clause::SayDone) {
            Command::Done
        } else {
            Command::Stop
        });
        restored.control = Control::Down;
        restored
    }

    fn end(&mut self, command: Command) {
        self.command = command;
        self.phase = Phase::Closed;
        self.epoch = 0;
    }

    fn hear(&mut self, command: u8) {
        self.phase = match self.phase {
            Phase::Requested if self.command == Command::Start(command) => Phase::Running,
            Phase::Running => Phase::Finished,
            other => other,
        };
    }

    pub(crate) fn renamed(&self, names: &Renaming) -> Self {
        Self {
            queue: self.queue.renamed(names),
            frame: self.frame.map(|frame| Frame {
                free: names.set(frame.free),
                ..frame
            }),
            map: names.set(self.map),
            ..*self
        }
    }
}

/// A step of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceAction {
    /// Takes the next buffer from the hint queue.
    TakeBuffer,
    /// Takes the agent's frame.
    TakeFrame,
    /// Answers the migrator, or notices that it has hung up.
    Answer,
    /// Dies, and is restarted.
    Restart,
}

/// The steps that the device may take next.
pub(crate) fn actions(model: &Migration, state: &State, out: &mut Vec<Action>) {
    let device = &state.device;
    let mut push = |action| out.push(Action::Device(action));
    if matches!(
        device.control,
        Control::Open(_) | Control::Close(_) | Control::Done | Control::HungUp
    ) {
        push(DeviceAction::Answer);
    }
    if device.lives > 0 && state.source_runs && device.control != Control::Down {
        push(DeviceAction::Restart);
    }
    // The rings are stopped while the guest is.
    if state.guest_runs() || !model.rule.holds(Clause::NoHintAfterPause) {
        if device.queue.first().is_some() {
            push(DeviceAction::TakeBuffer);
        }
        if device.frame.is_some() {
            push(DeviceAction::TakeFrame);
        }
    }
}

/// Takes the step.
pub(crate) fn step(model: &Migration, state: &mut State, action: DeviceAction) {
    match action {
        DeviceAction::TakeBuffer => {
            if let Some(message) = state.device.queue.pop() {
                take(model, state, message);
            }
        }
        DeviceAction::TakeFrame => {
            if let Some(frame) = state.device.frame.take()
                && state.device.epoch != 0
                && frame.id == state.device.id
            {
                for page in frame.free.iter() {
                    hint(model, state, page);
                }
            }
        }
        DeviceAction::Answer => answer(model, state),
        DeviceAction::Restart => {
            let device = &mut state.device;
            *device = Device {
                queue: device.queue,
                frame: device.frame,
                id: if model.rule.holds(Clause::FreshIds) {
                    device.id
                } else {
                    0
                },
                lives: device.lives - 1,
                control: match device.control {
                    Control::HungUp => Control::Down,
                    _ => Control::Dead,
                },
                ..Device::default()
            };
            if model.rule.holds(Clause::SayDoneAtStart) {
                device.command = Command::Done;
            }
        }
    }
}

fn take(model: &Migration, state: &mut State, message: Message) {
    let device = &mut state.device;
    match message {
        Message::Start(id) => device.hear(id),
        // No epoch has the id 0.
        Message::Stop => device.hear(0),
        Message::Hint(page) => {
            let counts = if model.rule.holds(Clause::CheckCommandId) {
                device.phase == Phase::Running
            } else {
                device.epoch != 0
            };
            if counts {
                hint(model, state, page);
                if model.setup.ragged && !model.rule.holds(Clause::RoundInward) {
                    hint(model, state, page.next(model.setup.pages));
                }
            }
        }
    }
}

/// A hint counts: sets the page's bit. With clauses switched off it also does what a hint must not do.
fn hint(model: &Migration, state: &mut State, page: Page) {
    let fetched = state.logs.kvm.fetched.has(page);
    if !model.rule.holds(Clause::ArmedWhenAsked) && fetched {
        return;
    }
    state.device.map.insert(page);
    // Where bits are cleared piece by piece, each is cleared once after it was read.
    let clears = model.setup.clearing == Clearing::AtOnce || fetched;
    if !model.rule.holds(Clause::KeepLog) && clears {
        state.logs.kvm.clear(ModelPages::from_iter([page]));
    }
    if !model.rule.holds(Clause::KeepMemory) {
        state.memory[page.index()] = 0;
    }
}

fn answer(model: &Migration, state: &mut State) {
    state.device.control = match state.device.control {
        Control::Open(epoch) => {
            let device = &mut state.device;
            device.epoch = epoch;
            device.id += 1;
            device.command = Command::Start(device.id);
            device.phase = Phase::Requested;
            Control::Ok
        }
        Control::Close(epoch) if epoch == state.device.epoch => {
            while let Some(message) = state.device.queue.pop() {
                take(model, state, message);
            }
            state.device.end(Command::Stop);
            Control::Ok
        }
        Control::Done => {
            state.device.end(Command::Done);
            Control::Ok
        }
        Control::HungUp => {
            state.device.end(Command::Done);
            Control::Down
        }
        _ => Control::Refused,
    };
}
