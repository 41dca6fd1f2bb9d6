// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A path to a broken property, as a story in plain words.

use stateright::{Checker, Model};

use super::clause::PostcopyClause;
use super::state::{ALL_COMES, CONTENT, FOREIGN, OLD, Postcopy, PostcopyState, SourceSide, Wrong};
use super::steps::PostcopyAction as A;
use crate::pages::Page;
use crate::told::{Exhausted, Told};

/// The shortest path to a broken property.
pub type PostcopyStory = Told<A>;

impl Postcopy {
    /// Looks for the shortest path to a state that breaks `property`.
    pub fn look_for_story(self, property: &'static str) -> Option<PostcopyStory> {
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
    model: &Postcopy,
    before: &PostcopyState,
    action: A,
    after: &PostcopyState,
) -> String {
    match action {
        A::HandOver => "The source hands the guest over, and says which pages are to come.".into(),
        A::TakeOver => "The destination runs the guest.".into(),
        A::Read(page) if after.waiting == Some(page) => {
            format!("The guest reads {page}, and waits for it.")
        }
        A::Read(page) => format!("The guest reads {page}."),
        A::Write(page) => format!("The guest writes version {} into {page}.", after.version),
        A::GiveUp(page) => format!("The guest gives {page} up, and the balloon discards it."),
        A::Fault(page) if after.waiting == Some(page) => {
            format!("The destination asks for {page}.")
        }
        A::Fault(page) => format!("The destination answers {page} with zeros."),
        A::Request(page) if before.unsent.has(page) => {
            format!("The request arrives, and the source sends {page}.")
        }
        A::Request(page) if model.promised().has(page) => {
            format!("The request arrives. The source has sent {page} before.")
        }
        A::Request(page) => {
            format!("The request arrives. The source has not promised {page}, and does not answer.")
        }
        A::Push(page) => format!("The source sends {page}."),
        A::Arrive(page) if before.memory[page.index()] != after.memory[page.index()] => {
            let from = if before.foreign {
                " of another guest"
            } else {
                ""
            };
            format!("{}{from} arrives and is placed.", capital(page))
        }
        A::Arrive(page) => format!("{} arrives, and is not needed any more.", capital(page)),
        A::Break if before.under_way.is_empty() && before.requests.is_empty() => {
            "The connection breaks.".into()
        }
        A::Break => "The connection breaks, and what is in its buffers is lost.".into(),
        A::RunAtSource => "The source runs the guest.".into(),
        A::AnswerAlone(page) => {
            format!("There is no connection. The destination answers {page} with zeros.")
        }
        A::Greet => "Both sides connect again, and the destination says what it has.".into(),
        A::GoOn if model.holds(PostcopyClause::ExchangeReceived) => {
            "The source goes on with all that has not arrived.".into()
        }
        A::GoOn => "The source goes on with all that it has not sent.".into(),
        A::Stranger => "The source of another guest connects.".into(),
        A::Complete => "The destination says that nothing is missing, and the source ends.".into(),
        A::Release => "The source has sent everything, and ends.".into(),
        A::Save => "The source saves what it has into a file, and ends.".into(),
        A::OpenFile => "The destination opens the file that the source has saved, and goes on from it.".into(),
        A::OpenOther => {
            "The destination opens a file that another guest's source has saved, and goes on from it."
                .into()
        }
        A::Load(page) => format!("The destination reads {page} from the file."),
        A::Die => "The destination ends.".into(),
        A::TakeBack => "An operator has the source run the guest.".into(),
        A::SaveHalf if after.runs_there() => {
            "The destination saves what it has into a file, and the guest runs on.".into()
        }
        A::SaveHalf => "The destination stops the guest, and saves what it has into a file.".into(),
        A::Reconcile => "A guest is made of the files, and runs.".into(),
        A::ReconcileWithOther => {
            "A guest is made of the destination's file and of one that another guest's source has saved."
                .into()
        }
    }
}

fn capital(page: Page) -> String {
    page.to_string().replacen('p', "P", 1)
}

/// What is wrong at the end of the story.
fn moral(last: &PostcopyState) -> String {
    if let Some(Wrong {
        page,
        found,
        should,
    }) = last.wrong
    {
        let content = |content| match content {
            0 => "zeros".to_string(),
            CONTENT => "what the source has".into(),
            OLD => "what an earlier round has sent".into(),
            FOREIGN => "what another guest has".into(),
            version => format!("version {version}"),
        };
        return format!(
            "The guest finds {} in {page}, where there should be {}.",
            content(found),
            content(should)
        );
    }
    if last.runs_there() && last.source == SourceSide::Runs {
        return "The guest runs on both sides.".into();
    }
    if last.runs_there() && last.is_whole {
        return "The guest runs twice.".into();
    }
    if let Some(page) = last.waiting {
        return format!("The guest waits for {page} for ever.");
    }
    match last.missing.iter().next() {
        Some(page) => format!("Nobody can bring {page} any more."),
        None => String::new(),
    }
}
