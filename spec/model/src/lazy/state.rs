// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of the guest's memory and of those who bring it, and the steps from state to state.

use stateright::{Model, Property};

use super::clause::{LazyClause, LazyRule};
use super::story;
use crate::pages::{ModelPages, Page, PerPage};

/// What the file has of every page.
pub const SAVED: u8 = 1;
/// What a damaged page contains.
pub const DAMAGED: u8 = 99;

/// Nobody finds anything in a page but what the guest has there.
pub const FOUND_RIGHT: &str = "what is found is right";
/// Somebody has, or can still have, each page that is waited for.
pub const SERVED: &str = "who waits is served";
/// A check of the model itself: on some path all memory comes.
pub const ALL_COMES: &str = "all memory comes";

/// Who takes part, and what may go wrong. The bounds make the state space finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LazySetup {
    /// Pages of the guest.
    pub pages: u8,
    /// How often the guest reads, writes or gives up a page.
    pub moves: u8,
    /// A thread loads pages that nobody waits for.
    pub loader: bool,
    /// A back end in another process touches pages.
    pub back_end: bool,
    /// Somebody wants to save the guest.
    pub saver: bool,
    /// Page A is damaged in the file.
    pub damage: bool,
}

impl LazySetup {
    /// One page, which the guest touches once, and nothing that goes wrong.
    pub const SMALLEST: Self = Self {
        pages: 1,
        moves: 1,
        loader: false,
        back_end: false,
        saver: false,
        damage: false,
    };
}

/// A restore to be checked: who takes part, and which clauses hold.
#[derive(Clone, Copy, Debug)]
pub struct Restoring {
    /// Who takes part, and what may go wrong.
    pub setup: LazySetup,
    /// The clauses that hold.
    pub rule: LazyRule,
}

/// Who brings pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bringer {
    /// The thread that answers faults.
    Answerer,
    /// The thread that loads what nobody waits for.
    Loader,
}

/// Who looks into pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reader {
    /// The guest.
    Guest,
    /// A back end in another process.
    BackEnd,
    /// Whoever saves or migrates the guest.
    Saver,
}

/// Somebody has found what should not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wrong {
    pub(crate) who: Reader,
    pub(crate) page: Page,
    pub(crate) found: u8,
    pub(crate) should: u8,
}

/// The state of everything at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LazyState {
    pub(crate) moves: u8,
    /// The last version that was written.
    pub(crate) version: u8,
    /// What each page should contain; 0: zeros.
    pub(crate) should: PerPage<u8>,
    /// What each page contains; `None`: the kernel has no page there.
    pub(crate) memory: PerPage<Option<u8>>,
    pub(crate) wanted: ModelPages,
    pub(crate) absent: ModelPages,
    /// What each bringer has read and not placed yet.
    pub(crate) hands: [Option<(Page, u8)>; 2],
    /// The page that the guest waits for.
    pub(crate) waiting: Option<Page>,
    /// The page that is being discarded: half of it is done.
    pub(crate) discarding: Option<Page>,
    /// The kernel answers faults by itself.
    pub(crate) let_go: bool,
    /// The guest was stopped, and its user told why.
    pub(crate) stopped: bool,
    pub(crate) wrong: Option<Wrong>,
}

/// A step of one participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LazyAction {
    /// The guest reads a page, or waits for it.
    Read(Page),
    /// The guest writes a page that is there.
    Write(Page),
    /// The first half of a discard.
    Discard(Page),
    /// The second half.
    Discarded(Page),
    /// The answerer looks at the fault: it claims the page, or answers with zeros.
    Answer(Page),
    /// The loader claims a page.
    Load(Page),
    /// Content that was read is placed, or not.
    Place(Bringer),
    /// The kernel gets the faults back.
    LetGo,
    /// A back end touches a page.
    Touch(Page),
    /// Somebody saves a page.
    Save(Page),
}

impl LazyState {
    fn hand(&self, bringer: Bringer) -> Option<(Page, u8)> {
        self.hands[bringer as usize]
    }

    /// `who` looks into `page`.
    fn look(&mut self, who: Reader, page: Page) {
        let (found, should) = (
            self.memory[page.index()].unwrap_or(0),
            self.should[page.index()],
        );
        if found != should && self.discarding != Some(page) {
            self.wrong = Some(Wrong {
                who,
                page,
                found,
                should,
            });
        }
    }

    /// The guest finds `page` there.
    fn wake(&mut self, page: Page) {
        if self.waiting == Some(page) && self.memory[page.index()].is_some() {
            self.waiting = None;
            self.look(Reader::Guest, page);
        }
    }

    /// The page is zero from now on, whatever the file says.
    fn forget(&mut self, page: Page) {
        self.wanted.remove(page);
        self.absent.remove(page);
    }
}

impl Restoring {
    fn holds(&self, clause: LazyClause) -> bool {
        self.rule.holds(clause)
    }

    fn content(&self, page: Page) -> u8 {
        match self.setup.damage && page == Page::A {
            true => DAMAGED,
            false => SAVED,
        }
    }

    fn guest(&self, state: &LazyState, actions: &mut Vec<LazyAction>) {
        if state.moves == 0 || state.waiting.is_some() || state.stopped {
            return;
        }
        for page in ModelPages::all(self.setup.pages).iter() {
            if state.discarding == Some(page) {
                continue;
            }
            actions.push(LazyAction::Read(page));
            if state.memory[page.index()].is_some() {
                actions.push(LazyAction::Write(page));
            }
            if state.discarding.is_none() {
                actions.push(LazyAction::Discard(page));
            }
        }
    }

    fn place(&self, state: &mut LazyState, bringer: Bringer) {
        let Some((page, content)) = state.hands[bringer as usize].take() else {
            return;
        };
        if content == DAMAGED && self.holds(LazyClause::RightOrNever) {
            match bringer {
                _ if !state.absent.has(page) => {}
                Bringer::Answerer => state.stopped = true,
                Bringer::Loader if self.holds(LazyClause::GiveBack) => state.wanted.insert(page),
                Bringer::Loader => {}
            }
            return;
        }
        if !state.absent.has(page) && self.holds(LazyClause::LookBeforePlacing) {
            return;
        }
        // The kernel never replaces a page that is there.
        state.memory[page.index()].get_or_insert(content);
        state.absent.remove(page);
        if !self.holds(LazyClause::SmallAnswers) {
            for neighbour in ModelPages::all(self.setup.pages).iter() {
                state.memory[neighbour.index()].get_or_insert(0);
            }
        }
        state.wake(page);
    }

    fn answer(&self, state: &mut LazyState, page: Page) {
        if state.wanted.has(page) {
            state.wanted.remove(page);
            state.hands[Bringer::Answerer as usize] = Some((page, self.content(page)));
        } else if !state.absent.has(page) {
            state.memory[page.index()].get_or_insert(0);
            state.wake(page);
        }
    }
}

impl Model for Restoring {
    type State = LazyState;
    type Action = LazyAction;

    fn init_states(&self) -> Vec<LazyState> {
        let all = ModelPages::all(self.setup.pages);
        let mut should = PerPage::default();
        for page in all.iter() {
            should[page.index()] = SAVED;
        }
        vec![LazyState {
            moves: self.setup.moves,
            version: SAVED,
            should,
            memory: PerPage::default(),
            wanted: all,
            absent: all,
            hands: [None; 2],
            waiting: None,
            discarding: None,
            let_go: false,
            stopped: false,
            wrong: None,
        }]
    }

    fn actions(&self, state: &LazyState, actions: &mut Vec<LazyAction>) {
        if state.wrong.is_some() {
            return;
        }
        self.guest(state, actions);
        actions.extend(state.discarding.map(LazyAction::Discarded));
        if state.hand(Bringer::Answerer).is_none()
            && let Some(page) = state.waiting
            && (state.wanted.has(page) || !state.absent.has(page))
        {
            actions.push(LazyAction::Answer(page));
        }
        if self.setup.loader && state.hand(Bringer::Loader).is_none() {
            actions.extend(state.wanted.iter().map(LazyAction::Load));
        }
        for bringer in [Bringer::Answerer, Bringer::Loader] {
            if state.hand(bringer).is_some() {
                actions.push(LazyAction::Place(bringer));
            }
        }
        let is_here = state.absent.is_empty();
        if !state.let_go && (is_here || !self.holds(LazyClause::LetGoLast)) {
            actions.push(LazyAction::LetGo);
        }
        for page in ModelPages::all(self.setup.pages).iter() {
            if self.setup.back_end && (is_here || !self.holds(LazyClause::BackEndsWait)) {
                actions.push(LazyAction::Touch(page));
            }
            if self.setup.saver && (is_here || !self.holds(LazyClause::SavesWait)) {
                actions.push(LazyAction::Save(page));
            }
        }
    }

    fn next_state(&self, last: &LazyState, action: LazyAction) -> Option<LazyState> {
        let mut state = *last;
        let tells_first = self.holds(LazyClause::TellFirst);
        match action {
            LazyAction::Read(page) => {
                state.moves -= 1;
                state.waiting = Some(page);
                if state.let_go {
                    state.memory[page.index()].get_or_insert(0);
                }
                state.wake(page);
            }
            LazyAction::Write(page) => {
                state.moves -= 1;
                state.version += 1;
                state.memory[page.index()] = Some(state.version);
                state.should[page.index()] = state.version;
            }
            LazyAction::Discard(page) => {
                state.moves -= 1;
                state.discarding = Some(page);
                if !tells_first {
                    state.memory[page.index()] = None;
                } else if self.holds(LazyClause::TellDiscards) {
                    state.forget(page);
                }
            }
            LazyAction::Discarded(page) => {
                state.discarding = None;
                if tells_first {
                    state.memory[page.index()] = None;
                } else {
                    state.forget(page);
                }
                state.should[page.index()] = 0;
            }
            LazyAction::Answer(page) => self.answer(&mut state, page),
            LazyAction::Load(page) => {
                state.wanted.remove(page);
                state.hands[Bringer::Loader as usize] = Some((page, self.content(page)));
            }
            LazyAction::Place(bringer) => self.place(&mut state, bringer),
            LazyAction::LetGo => {
                state.let_go = true;
                if let Some(page) = state.waiting {
                    state.memory[page.index()].get_or_insert(0);
                    state.wake(page);
                }
            }
            LazyAction::Touch(page) => {
                state.memory[page.index()].get_or_insert(0);
                state.look(Reader::BackEnd, page);
            }
            LazyAction::Save(page) => state.look(Reader::Saver, page),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(FOUND_RIGHT, |_, state: &LazyState| state.wrong.is_none()),
            Property::always(SERVED, |_, state: &LazyState| {
                state.waiting.is_none_or(|page| {
                    let is_held = (state.hands.iter().flatten()).any(|(held, _)| *held == page);
                    state.stopped || is_held || state.wanted.has(page) || !state.absent.has(page)
                })
            }),
            Property::sometimes(ALL_COMES, |_, state: &LazyState| {
                state.let_go && state.wrong.is_none() && state.memory[0].is_some()
            }),
        ]
    }

    fn format_step(&self, last: &LazyState, action: LazyAction) -> Option<String> {
        let next = self.next_state(last, action)?;
        Some(format!(
            "{}\n\n{next:#?}",
            story::sentence(self, last, action, &next)
        ))
    }
}
