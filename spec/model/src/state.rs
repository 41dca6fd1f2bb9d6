// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of everything together, and the steps from state to state.

use std::sync::LazyLock;

use stateright::{Model, Property};

use crate::device::{self, Device, DeviceAction};
use crate::guest::{self, Guest, GuestAction};
use crate::host::{self, Host, HostAction};
use crate::logs::Logs;
use crate::network::{self, Destination, NetworkAction, Wire};
use crate::operator::{self, OperatorAction};
use crate::pages::{MAX_PAGES, ModelPages, Page, PerPage, Renaming};
use crate::properties;
use crate::rule::{Clause, Rule};
use crate::setup::Setup;
use crate::story;

/// A migration to be checked: who takes part, and which clauses hold.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Who takes part, and how many steps each may take.
    pub setup: Setup,
    /// The clauses that hold.
    pub rule: Rule,
}

/// The state of everything at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    pub(crate) guest: Guest,
    /// The source's memory.
    pub(crate) memory: PerPage<u8>,
    /// Whether the guest runs at the source.
    pub(crate) source_runs: bool,
    /// How many writes of the back end and of the VMM are left.
    pub(crate) others: Others,
    pub(crate) logs: Logs,
    pub(crate) device: Device,
    pub(crate) host: Host,
    pub(crate) wire: Wire,
    pub(crate) destination: Destination,
}

/// How many writes the other writers have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Others {
    pub(crate) back_end_writes: u8,
    pub(crate) own_writes: u8,
}

/// A step of one participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The guest's.
    Guest(GuestAction),
    /// The balloon device's.
    Device(DeviceAction),
    /// A vhost-user back end writes a page.
    BackEndWrites(Page),
    /// The back end logs what it has written.
    BackEndLogs,
    /// The VMM writes a page.
    VmmWrites(Page),
    /// A vCPU whose ring is full, or a thread that does so now and then, empties the ring.
    RingIsEmptied,
    /// The migrator's.
    Host(HostAction),
    /// The network's or the destination's.
    Network(NetworkAction),
    /// An operator's.
    Operator(OperatorAction),
}

impl State {
    /// The visible result of a migration that is over: the guest, its memory on both sides, and which pages were sent to
    /// the destination.
    pub fn outcome(&self) -> impl Ord + std::fmt::Debug + use<> {
        let Guest { usage, content, .. } = self.guest;
        let sent = self.host.sent;
        (usage, content, self.memory, self.destination, sent)
    }

    /// Whether the guest runs, at the source or at the destination.
    pub(crate) fn guest_runs(&self) -> bool {
        self.source_runs || self.destination.runs()
    }

    /// What `page` has at the destination.
    pub(crate) fn at_destination(&self, page: Page) -> u8 {
        let memory = match self.destination.is_lent {
            true => &self.memory,
            false => &self.destination.memory,
        };
        memory[page.index()]
    }

    /// A vCPU writes the next version of `page`.
    pub(crate) fn write(&mut self, page: Page) {
        self.store_next(page);
        self.logs.written_by_guest(page);
    }

    /// Gives the page `content`, as the guest's own write does.
    pub(crate) fn store(&mut self, page: Page, content: u8) {
        self.guest.content[page.index()] = content;
        self.memory[page.index()] = content;
    }

    fn store_next(&mut self, page: Page) {
        self.guest.version[page.index()] += 1;
        self.store(page, self.guest.version[page.index()]);
    }

    fn renamed(&self, names: &Renaming) -> Self {
        let (wire, destination) = network::renamed(self, names);
        Self {
            guest: self.guest.renamed(names),
            memory: names.each(self.memory),
            logs: self.logs.renamed(names),
            device: self.device.renamed(names),
            host: self.host.renamed(names),
            wire,
            destination,
            ..*self
        }
    }
}

/// The least of the states that differ from `state` only in the names of its `PAGES` pages.
pub(crate) fn representative<const PAGES: u8>(state: &State) -> State {
    static RENAMINGS: LazyLock<[Vec<Renaming>; MAX_PAGES + 1]> =
        LazyLock::new(|| std::array::from_fn(|pages| Renaming::all(pages as u8)));
    (RENAMINGS[usize::from(PAGES)].iter())
        .map(|names| state.renamed(names))
        .min()
        .unwrap_or(*state)
}

impl Model for Migration {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let setup = &self.setup;
        let guest = Guest::new(setup.moves, setup.pages);
        vec![State {
            memory: guest.content,
            guest,
            source_runs: true,
            others: Others {
                back_end_writes: setup.back_end_writes,
                own_writes: setup.own_writes,
            },
            logs: Logs::default(),
            device: Device {
                lives: setup.deaths,
                ..Device::default()
            },
            host: Host {
                failures: setup.failures,
                impatience: setup.impatience,
                ..Host::default()
            },
            wire: Wire::default(),
            destination: Destination::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        guest::actions(self, state, actions);
        if state.source_runs {
            for page in ModelPages::all(self.setup.pages).iter() {
                if !state.guest.uses(page) {
                    continue;
                }
                if state.others.back_end_writes > 0 {
                    actions.push(Action::BackEndWrites(page));
                }
                if state.others.own_writes > 0 {
                    actions.push(Action::VmmWrites(page));
                }
            }
        }
        if !state.logs.unlogged.is_empty() {
            actions.push(Action::BackEndLogs);
        }
        // A harvest has the ring to itself.
        if !state.logs.kvm.ring.is_empty() && state.logs.kvm.fetched.is_empty() {
            actions.push(Action::RingIsEmptied);
        }
        device::actions(self, state, actions);
        host::actions(self, state, actions);
        network::actions(self, state, actions);
        operator::actions(self, state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Guest(action) => guest::step(self, &mut state, action),
            Action::Device(action) => device::step(self, &mut state, action),
            Action::BackEndWrites(page) => {
                state.others.back_end_writes -= 1;
                state.store_next(page);
                state.logs.unlogged.insert(page);
            }
            Action::BackEndLogs => state.logs.catch_up(),
            Action::VmmWrites(page) => {
                state.others.own_writes -= 1;
                state.store_next(page);
                state.logs.written_by_vmm(page);
            }
            Action::RingIsEmptied => {
                let keeps = self.rule.holds(Clause::KeepTaken);
                state.logs.kvm.empty_ring(keeps);
            }
            Action::Host(action) => host::step(self, &mut state, action),
            Action::Network(action) => network::step(self, &mut state, action),
            Action::Operator(action) => operator::step(self, &mut state, action),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }

    fn format_step(&self, last: &State, action: Action) -> Option<String> {
        let next = self.next_state(last, action)?;
        Some(format!(
            "{}\n\n{next:#?}",
            story::sentence(self, last, action, &next)
        ))
    }
}
