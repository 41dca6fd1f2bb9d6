// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stories in `spec/free-page-hinting.md`, `spec/file-format.md`, `spec/lazy-restore.md` and `spec/postcopy.md`. Each is between
//! two comments. A command writes them, and a test compares them with the model.

use crate::catalogue;
use crate::file::{self, FileClause};
use crate::lazy::{self, LazyClause};
use crate::postcopy::{self, PostcopyClause};
use crate::rule::Clause;

const BEGIN: &str = "<!-- story: ";
const BEGIN_ENDS: &str = " -->\n";
const END: &str = "<!-- end of story -->";

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// A comment names an unknown clause.
    #[error("no clause is called {0:?}")]
    Clause(String),
    /// A story has no end.
    #[error("the story of {0} has no {END}")]
    NoEnd(String),
    /// The model finds no story without the clause.
    #[error("no story without {0}")]
    NoStory(String),
}

/// `text` with its stories replaced by the model's.
///
/// # Errors
/// [`DocumentError`] if the comments in it are wrong.
pub fn retell(text: &str) -> Result<String, DocumentError> {
    let mut retold = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let no_end = |name: &str| DocumentError::NoEnd(name.into());
        let (name, told) = after.split_once(BEGIN_ENDS).ok_or_else(|| no_end(after))?;
        let (_, after) = told.split_once(END).ok_or_else(|| no_end(name))?;
        let story = tell(name)?;
        retold += &format!("{before}{BEGIN}{name}{BEGIN_ENDS}\n{story}\n\n{END}");
        rest = after;
    }
    Ok(retold + rest)
}

/// The story of the clause that is called `name`.
fn tell(name: &str) -> Result<String, DocumentError> {
    let told = if let Ok(clause) = name.parse::<Clause>() {
        let case = catalogue::without(clause);
        let found = case.migration.look_for_story(case.property);
        found.story.map(|story| story.to_string())
    } else if let Ok(clause) = name.parse::<FileClause>() {
        let case = file::catalogue::without(clause);
        let found = case.saving.look_for_story(case.property);
        found.map(|story| story.to_string())
    } else if let Ok(clause) = name.parse::<LazyClause>() {
        let case = lazy::catalogue::without(clause);
        let found = case.restoring.look_for_story(case.property);
        found.map(|story| story.to_string())
    } else if let Ok(clause) = name.parse::<PostcopyClause>() {
        let case = postcopy::catalogue::without(clause);
        let found = case.postcopy.look_for_story(case.property);
        found.map(|story| story.to_string())
    } else {
        return Err(DocumentError::Clause(name.into()));
    };
    told.ok_or_else(|| DocumentError::NoStory(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_replaces_the_old_one_and_stays_the_same_when_retold() {
        let text = "Before.\n<!-- story: stop-logging -->\nold\n<!-- end of story -->\nAfter.\n";
        let retold = retell(text).unwrap();
        assert!(retold.starts_with("Before.\n<!-- story: stop-logging -->\n\n1. The migrator"));
        assert!(retold.ends_with("<!-- end of story -->\nAfter.\n"));
        assert!(!retold.contains("old\n"));
        assert_eq!(retell(&retold), Ok(retold));
    }

    #[test]
    fn a_story_without_a_known_clause_or_an_end_is_refused() {
        let unknown = "<!-- story: nothing -->\n<!-- end of story -->";
        assert!(matches!(retell(unknown), Err(DocumentError::Clause(_))));
        let endless = "<!-- story: arm-first -->\n1. And so on";
        assert!(matches!(retell(endless), Err(DocumentError::NoEnd(_))));
    }
}
