// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest: what it does with its pages, its balloon driver and its agent.
//!
//! The driver behaves like Linux's. At a new command id it allocates free pages, hints them and holds them. STOP ends
//! the round, and at DONE the driver releases the pages. Under memory pressure it releases held pages without telling
//! the device.

use crate::device::{Command, Frame, Message};
use crate::pages::{ModelPages, Page, PerPage, Renaming};
use crate::rule::Clause;
use crate::state::{Action, Migration, State};

/// The state of a page in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Usage {
    /// It has content that must not be lost.
    #[default]
    InUse,
    /// It is on the free list.
    Free,
    /// The balloon driver holds it and has hinted it.
    Held,
}

/// The guest. It does not know that it is being migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guest {
    pub(crate) usage: PerPage<Usage>,
    /// What the guest last wrote to each page; 0 is a page of zeros.
    pub(crate) content: PerPage<u8>,
    /// How often each page was written. Each write stores this number as the page's content.
    pub(crate) version: PerPage<u8>,
    /// How many moves are left.
    pub(crate) moves: u8,
    pub(crate) driver: Driver,
    pub(crate) agent: Agent,
}

/// The driver of the hint queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Driver {
    /// The command that it read last.
    pub(crate) read: Command,
    /// The id of its last round.
    pub(crate) active: u8,
    /// Whether it is in a round.
    pub(crate) hinting: bool,
}

/// The agent that reads the page flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Agent {
    /// The id under which it was asked; 0 if it was not asked, or has answered.
    pub(crate) asked: u8,
    /// The last id under which it answered.
    pub(crate) answered: u8,
    /// Pages that were free when the agent read their flags.
    pub(crate) seen: ModelPages,
}

/// A step of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestAction {
    /// Writes a page that it uses.
    Write(Page),
    /// Frees a page.
    Free(Page),
    /// Reuses a free page and writes it.
    Take(Page),
    /// Reuses a free page and relies on its being zero.
    TakeZeroed(Page),
    /// The driver reads the command in the configuration space.
    ReadCommand,
    /// The driver allocates a free page and hints it.
    Hint(Page),
    /// The driver has hinted all it can.
    EndRound,
    /// The driver gives a page back under memory pressure.
    Release(Page),
    /// The guest reports a free page, or puts it into the balloon; the device discards its memory.
    Report(Page),
    /// The agent is asked for its map.
    AgentHears,
    /// The agent reads the flags of a free page.
    AgentLooks(Page),
    /// The agent sends the pages that were free.
    AgentSends,
}

impl Guest {
    pub(crate) fn new(moves: u8, pages: u8) -> Self {
        let mut written = PerPage::default();
        written[..usize::from(pages)].fill(1);
        Self {
            usage: PerPage::default(),
            content: written,
            version: written,
            moves,
            driver: Driver::default(),
            agent: Agent::default(),
        }
    }

    /// Whether the guest uses the page, so that its content must not be lost.
    pub fn uses(&self, page: Page) -> bool {
        self.usage[page.index()] == Usage::InUse
    }

    pub(crate) fn renamed(&self, names: &Renaming) -> Self {
        Self {
            usage: names.each(self.usage),
            content: names.each(self.content),
            version: names.each(self.version),
            agent: Agent {
                seen: names.set(self.agent.seen),
                ..self.agent
            },
            ..*self
        }
    }
}

/// The steps that the guest may take next.
pub(crate) fn actions(model: &Migration, state: &State, out: &mut Vec<Action>) {
    if !state.guest_runs() {
        return;
    }
    let setup = &model.setup;
    let mut push = |action| out.push(Action::Guest(action));
    let Guest { driver, agent, .. } = &state.guest;
    if setup.driver && driver.read != state.device.command && state.device.queue.room() >= 2 {
        push(GuestAction::ReadCommand);
    }
    if driver.hinting && state.device.queue.room() >= 1 {
        push(GuestAction::EndRound);
    }
    if !state.source_runs {
        // The memory was compared already. The guest only has to get its pages back.
        return;
    }
    if setup.agent {
        let id = state.device.open_id();
        if id != 0 && id != agent.asked && id != agent.answered {
            push(GuestAction::AgentHears);
        }
        if agent.asked != 0 && !agent.seen.is_empty() && state.device.frame.is_none() {
            push(GuestAction::AgentSends);
        }
    }
    if state.guest.moves == 0 {
        return;
    }
    for page in ModelPages::all(setup.pages).iter() {
        let writes = !state.logs.has_no_room(page) || !model.rule.holds(Clause::WaitWhenFull);
        match state.guest.usage[page.index()] {
            Usage::InUse => {
                if writes || !setup.init_on_free {
                    push(GuestAction::Free(page));
                }
                if writes {
                    push(GuestAction::Write(page));
                }
            }
            Usage::Free => {
                if driver.hinting && state.device.queue.room() >= 2 {
                    push(GuestAction::Hint(page));
                }
                if writes {
                    push(GuestAction::Take(page));
                }
                if setup.init_on_free {
                    push(GuestAction::TakeZeroed(page));
                }
                if setup.reporting && state.memory[page.index()] != 0 {
                    push(GuestAction::Report(page));
                }
                if agent.asked != 0 && !agent.seen.has(page) {
                    push(GuestAction::AgentLooks(page));
                }
            }
            Usage::Held => push(GuestAction::Release(page)),
        }
    }
}

impl GuestAction {
    fn is_move(self) -> bool {
        !matches!(
            self,
            Self::ReadCommand | Self::EndRound | Self::AgentHears | Self::AgentSends
        )
    }
}

/// Takes the step.
pub(crate) fn step(model: &Migration, state: &mut State, action: GuestAction) {
    if action.is_move() {
        state.guest.moves -= 1;
    }
    let guest = &mut state.guest;
    match action {
        GuestAction::Write(page) => state.write(page),
        GuestAction::Free(page) => {
            guest.usage[page.index()] = Usage::Free;
            if model.setup.init_on_free {
                state.store(page, 0);
                state.logs.written_by_guest(page);
            }
        }
        GuestAction::Take(page) => {
            guest.usage[page.index()] = Usage::InUse;
            state.write(page);
        }
        GuestAction::TakeZeroed(page) => guest.usage[page.index()] = Usage::InUse,
        GuestAction::ReadCommand => read_command(state),
        GuestAction::Hint(page) => {
            guest.usage[page.index()] = Usage::Held;
            state.device.queue.push(Message::Hint(page));
        }
        GuestAction::EndRound => {
            guest.driver.hinting = false;
            state.device.queue.push(Message::Stop);
        }
        GuestAction::Release(page) => guest.usage[page.index()] = Usage::Free,
        GuestAction::Report(page) => {
            state.memory[page.index()] = 0;
            if model.rule.holds(Clause::LogDiscards) {
                state.logs.discarded(page);
            }
        }
        GuestAction::AgentHears => {
            guest.agent.asked = state.device.open_id();
            guest.agent.seen = ModelPages::EMPTY;
        }
        GuestAction::AgentLooks(page) => guest.agent.seen.insert(page),
        GuestAction::AgentSends => {
            let looked_at = guest.agent.asked;
            let id = if model.rule.holds(Clause::TagWhenLookedAt) {
                looked_at
            } else {
                state.device.open_id()
            };
            state.device.frame = Some(Frame {
                id,
                free: guest.agent.seen.take(),
            });
            guest.agent.asked = 0;
            guest.agent.answered = looked_at;
        }
    }
}

fn read_command(state: &mut State) {
    let State { guest, device, .. } = state;
    let driver = &mut guest.driver;
    driver.read = device.command;
    match device.command {
        Command::Start(id) if id == driver.active => {}
        command => {
            if driver.hinting {
                device.queue.push(Message::Stop);
                driver.hinting = false;
            }
            match command {
                Command::Start(id) => {
                    device.queue.push(Message::Start(id));
                    driver.active = id;
                    driver.hinting = true;
                }
                Command::Stop => {}
                Command::Done => {
                    for usage in &mut guest.usage {
                        if *usage == Usage::Held {
                            *usage = Usage::Free;
                        }
                    }
                }
            }
        }
    }
}
