// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A path to a broken property, as a story in plain words.

use stateright::{Checker, Model};

use super::clause::LazyClause;
use super::state::{
    ALL_COMES, Bringer, DAMAGED, LazyAction, LazyState, Reader, Restoring, SAVED, Wrong,
};
use crate::pages::Page;
use crate::told::{Exhausted, Told};

/// The shortest path to a broken property.
pub type LazyStory = Told<LazyAction>;

impl Restoring {
    /// Looks for the shortest path to a state that breaks `property`.
    pub fn look_for_story(self, property: &'static str) -> Option<LazyStory> {
        Told::look_for(self, property, sentence, |_, last| moral(last))
    }

    /// Visits every state that can be reached. The model succeeds if all memory comes on some path.
    pub fn exhaust(self) -> Exhausted {
        let checker = self.checker().spawn_dfs().join();
        Exhausted::of(&checker, ALL_COMES)
    }
}

/// What `action` did between `before` and `after`.
pub(crate) fn sentence(
    model: &Restoring,
    before: &LazyState,
    action: LazyAction,
    after: &LazyState,
) -> String {
    let punched = |page: Page| match before.memory[page.index()] {
        Some(_) => format!("{page} is given back to the host"),
        None => format!("{page} is given back to the host, which has nothing there"),
    };
    let told = |page: Page| format!("{page} is taken out of what is missing");
    let tells_first = model.rule.holds(LazyClause::TellFirst);
    match action {
        LazyAction::Read(page) if after.waiting == Some(page) => {
            format!("The guest reads {page}, and waits for it.")
        }
        LazyAction::Read(page) => format!("The guest reads {page}."),
        LazyAction::Write(page) => {
            format!("The guest writes version {} into {page}.", after.version)
        }
        LazyAction::Discard(page) if !tells_first => {
            format!("The guest gives {page} up: {}.", punched(page))
        }
        LazyAction::Discard(page) if before.absent == after.absent => {
            format!("The guest gives {page} up. Nobody tells of it.")
        }
        LazyAction::Discard(page) => format!("The guest gives {page} up: {}.", told(page)),
        LazyAction::Discarded(page) if tells_first => capital(&format!("{}.", punched(page))),
        LazyAction::Discarded(page) => capital(&format!("{}.", told(page))),
        LazyAction::Answer(page) if before.wanted.has(page) => {
            format!("The fault is read: {page} is claimed and read from the file.")
        }
        LazyAction::Answer(page) => format!("The fault is read: {page} is answered with zeros."),
        LazyAction::Load(page) => format!("The loader claims {page} and reads it from the file."),
        LazyAction::Place(bringer) => placed(before, bringer, after),
        LazyAction::LetGo => "The kernel answers faults by itself from now on.".into(),
        LazyAction::Touch(page) => format!("A back end in another process reads {page}."),
        LazyAction::Save(page) => {
            format!("The guest is saved: of {page} it is asked whether it was ever touched.")
        }
    }
}

fn placed(before: &LazyState, bringer: Bringer, after: &LazyState) -> String {
    let who = match bringer {
        Bringer::Answerer => "The answer",
        Bringer::Loader => "What the loader has",
    };
    let Some((page, content)) = before.hands[bringer as usize] else {
        return "Nothing is placed.".into();
    };
    if before.memory[page.index()] != after.memory[page.index()] {
        let came = (before.memory.iter().zip(&after.memory)).filter(|(was, is)| was != is);
        return match came.count() {
            1 => format!("{who} is placed in {page}."),
            _ => format!("{who} is placed in {page}, and the kernel makes its neighbour, too."),
        };
    }
    match (content, after.stopped) {
        (DAMAGED, true) => format!(
            "{} is damaged: the guest is stopped.",
            capital(&page.to_string())
        ),
        (DAMAGED, false) if after.wanted.has(page) => {
            format!(
                "{} is damaged; it is wanted again.",
                capital(&page.to_string())
            )
        }
        (DAMAGED, false) => format!(
            "{} is damaged; the loader leaves it.",
            capital(&page.to_string())
        ),
        _ => format!("{who} is not needed any more."),
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

/// What is wrong at the end of the story.
fn moral(last: &LazyState) -> String {
    let content = |content| match content {
        0 => "zeros".to_string(),
        SAVED => "what was saved".into(),
        DAMAGED => "what nobody has written".into(),
        version => format!("version {version}"),
    };
    match (last.wrong, last.waiting) {
        (
            Some(Wrong {
                who,
                page,
                found,
                should,
            }),
            _,
        ) => {
            let who = match who {
                Reader::Guest => "The guest finds",
                Reader::BackEnd => "The back end finds",
                Reader::Saver => "The saved guest has",
            };
            format!(
                "{who} {} in {page}, where there should be {}.",
                content(found),
                content(should)
            )
        }
        (None, Some(page)) => format!("The guest waits for {page} for ever, and nobody is told."),
        (None, None) => String::new(),
    }
}
