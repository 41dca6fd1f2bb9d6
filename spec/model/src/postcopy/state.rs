// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of both sides and of what is between them, and what must always hold.

use stateright::{Model, Property};

use super::clause::{PostcopyClause, PostcopyRule};
use super::steps::PostcopyAction;
use super::story;
use crate::pages::{ModelPages, Page, PerPage};

/// What the source has in every promised page.
pub const CONTENT: u8 = 1;
/// What an earlier round has sent of it.
pub const OLD: u8 = 2;
/// What another guest has there.
pub const FOREIGN: u8 = 99;

/// The guest finds nothing in a page but what it has there.
pub const FOUND_RIGHT: &str = "what is found is right";
/// The guest never runs in two places.
pub const ONE_OWNER: &str = "one side runs the guest";
/// If nobody can take another step, the guest has all of its memory, or it is known to be undecided who has it.
pub const ENDS_WELL: &str = "every end is good";
/// A check of the model itself: on some path all memory comes.
pub const ALL_COMES: &str = "all memory comes";

/// Who takes part, and what may go wrong. The bounds make the state space finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostcopySetup {
    /// Pages of the guest.
    pub pages: u8,
    /// How often the guest reads, writes or gives up a page at the destination.
    pub moves: u8,
    /// How often the connection breaks.
    pub cuts: u8,
    /// The last page was skipped because of a hint.
    pub hinted: bool,
    /// An earlier round has sent promised pages, which were written since.
    pub sent_before: bool,
    /// The source of another guest connects after a break.
    pub stranger: bool,
    /// The source ends after a break, and saves what it has into a file.
    pub file: bool,
    /// The destination saves what it has, too, and a guest is made of both.
    pub halves: bool,
    /// The destination's process may end at any moment.
    pub dies: bool,
}

impl PostcopySetup {
    /// One page, which the guest does not touch, and nothing that goes wrong.
    pub const SMALLEST: Self = Self {
        pages: 1,
        moves: 0,
        cuts: 0,
        hinted: false,
        sent_before: false,
        stranger: false,
        file: false,
        halves: false,
        dies: false,
    };
}

/// A postcopy to be checked: who takes part, and which clauses hold.
#[derive(Clone, Copy, Debug)]
pub struct Postcopy {
    /// Who takes part, and what may go wrong.
    pub setup: PostcopySetup,
    /// The clauses that hold.
    pub rule: PostcopyRule,
}

/// Where the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceSide {
    /// It has stopped its guest.
    Stopped,
    /// It runs its guest.
    Runs,
    /// It has given its guest up, and has its memory.
    Serves,
    /// It has ended.
    Ended,
}

/// The hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandOver {
    /// Not sent.
    Unsent,
    /// Under way.
    Sent,
    /// Lost.
    Lost,
    /// The guest runs at the destination.
    Taken,
    /// The guest was stopped, and is in the destination's half.
    Saved,
    /// The destination has ended, and has never run the guest.
    Unrun,
    /// The destination has ended, and the guest with it.
    Died,
}

/// The connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// It carries what either side sends.
    Up,
    /// It is broken.
    Broken,
    /// There is another one, on which the destination has said what it has.
    Greeted,
    /// It is broken, and nobody makes another one.
    GivenUp,
    /// In its place the destination has opened a file.
    File,
}

/// The guest has found what should not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wrong {
    pub(crate) page: Page,
    pub(crate) found: u8,
    pub(crate) should: u8,
}

/// The state of everything at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PostcopyState {
    pub(crate) moves: u8,
    pub(crate) cuts: u8,
    /// The last version that was written.
    pub(crate) version: u8,
    pub(crate) source: SourceSide,
    pub(crate) hand_over: HandOver,
    pub(crate) link: Link,
    /// The source at the other end is that of another guest, or has saved the file that is open.
    pub(crate) foreign: bool,
    /// What each page should contain; 0: zeros.
    pub(crate) should: PerPage<u8>,
    /// What each page of the destination contains; `None`: the kernel has no page there.
    pub(crate) memory: PerPage<Option<u8>>,
    /// Promised pages that have not come.
    pub(crate) missing: ModelPages,
    /// Requests in the buffers of the connection.
    pub(crate) requests: ModelPages,
    /// Pages that were asked for on this connection.
    pub(crate) asked: ModelPages,
    /// Pages in the buffers of the connection.
    pub(crate) under_way: ModelPages,
    /// Promised pages that the source has not sent, as it believes.
    pub(crate) unsent: ModelPages,
    /// Pages of which the source knows that they have arrived.
    pub(crate) confirmed: ModelPages,
    /// The pages in the file that the source has saved.
    pub(crate) file: Option<ModelPages>,
    /// The destination has saved its half.
    pub(crate) half: bool,
    /// A guest was made of both halves, and runs somewhere.
    pub(crate) is_whole: bool,
    /// The page that the guest waits for.
    pub(crate) waiting: Option<Page>,
    pub(crate) wrong: Option<Wrong>,
}

impl PostcopyState {
    /// The guest runs at the destination.
    pub(crate) fn runs_there(&self) -> bool {
        self.hand_over == HandOver::Taken
    }

    /// The destination has taken the guest over. It may have stopped it since.
    pub(crate) fn was_taken(&self) -> bool {
        matches!(self.hand_over, HandOver::Taken | HandOver::Saved)
    }

    /// The guest finds `page` there, if it waits for it.
    pub(crate) fn wake(&mut self, page: Page) {
        let Some(found) = self.memory[page.index()] else {
            return;
        };
        if self.waiting == Some(page) {
            self.waiting = None;
            let should = self.should[page.index()];
            if found != should {
                self.wrong = Some(Wrong {
                    page,
                    found,
                    should,
                });
            }
        }
    }
}

impl Postcopy {
    pub(crate) fn holds(&self, clause: PostcopyClause) -> bool {
        self.rule.holds(clause)
    }

    /// The pages that the source still has to send when it stops the guest.
    pub(crate) fn promised(&self) -> ModelPages {
        let hinted = u8::from(self.setup.hinted);
        ModelPages::all(self.setup.pages - hinted)
    }
}

impl Model for Postcopy {
    type State = PostcopyState;
    type Action = PostcopyAction;

    fn init_states(&self) -> Vec<PostcopyState> {
        let promised = self.promised();
        let (mut should, mut memory) = (PerPage::default(), PerPage::default());
        for page in promised.iter() {
            should[page.index()] = CONTENT;
            if self.setup.sent_before && !self.holds(PostcopyClause::EmptyFirst) {
                memory[page.index()] = Some(OLD);
            }
        }
        vec![PostcopyState {
            moves: self.setup.moves,
            cuts: self.setup.cuts,
            version: OLD,
            source: SourceSide::Stopped,
            hand_over: HandOver::Unsent,
            link: Link::Up,
            foreign: false,
            should,
            memory,
            missing: promised,
            requests: ModelPages::EMPTY,
            asked: ModelPages::EMPTY,
            under_way: ModelPages::EMPTY,
            unsent: promised,
            confirmed: ModelPages::EMPTY,
            file: None,
            half: false,
            is_whole: false,
            waiting: None,
            wrong: None,
        }]
    }

    fn actions(&self, state: &PostcopyState, actions: &mut Vec<PostcopyAction>) {
        if state.wrong.is_none() {
            self.choices(state, actions);
        }
    }

    fn next_state(&self, last: &PostcopyState, action: PostcopyAction) -> Option<PostcopyState> {
        Some(self.step(*last, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(FOUND_RIGHT, |_, state: &PostcopyState| {
                state.wrong.is_none()
            }),
            Property::always(ONE_OWNER, |_, state: &PostcopyState| {
                let runs_elsewhere = state.source == SourceSide::Runs || state.is_whole;
                !(state.runs_there() && runs_elsewhere)
            }),
            Property::always(ENDS_WELL, |model: &Self, state: &PostcopyState| {
                let mut choices = Vec::new();
                model.actions(state, &mut choices);
                let is_complete = state.missing.is_empty() && state.waiting.is_none();
                let is_good = match state.hand_over {
                    HandOver::Taken => is_complete,
                    // An operator decides, who knows that neither side runs the guest.
                    HandOver::Lost => true,
                    HandOver::Unsent | HandOver::Sent | HandOver::Unrun => {
                        state.source == SourceSide::Runs
                    }
                    // As with any machine that dies.
                    HandOver::Died => true,
                    HandOver::Saved => state.is_whole,
                };
                !choices.is_empty() || is_good || state.wrong.is_some()
            }),
            Property::sometimes(ALL_COMES, |_, state: &PostcopyState| {
                state.runs_there() && state.missing.is_empty() && state.wrong.is_none()
            }),
        ]
    }

    fn format_step(&self, last: &PostcopyState, action: PostcopyAction) -> Option<String> {
        let next = self.next_state(last, action)?;
        Some(format!(
            "{}\n\n{next:#?}",
            story::sentence(self, last, action, &next)
        ))
    }
}
