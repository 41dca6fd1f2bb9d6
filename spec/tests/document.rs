// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stories in the documents are those of the models.

use spec_model::file::FileClause;
use spec_model::lazy::LazyClause;
use spec_model::postcopy::PostcopyClause;
use spec_model::{Clause, document};

const DOCUMENT: &str = include_str!("../free-page-hinting.md");
const FILES: &str = include_str!("../file-format.md");
const LAZY: &str = include_str!("../lazy-restore.md");
const POSTCOPY: &str = include_str!("../postcopy.md");

#[test]
fn the_documents_stories_are_the_models() {
    for (name, text) in [
        ("free-page-hinting", DOCUMENT),
        ("file-format", FILES),
        ("lazy-restore", LAZY),
        ("postcopy", POSTCOPY),
    ] {
        let retold = document::retell(text).unwrap();
        assert!(
            retold == text,
            "write them again: cargo run -p lacuna-spec --example explore -- retell spec/{name}.md"
        );
    }
}

#[test]
fn the_document_of_files_has_a_story_for_every_clause() {
    for clause in FileClause::ALL {
        let name = clause.name();
        assert!(FILES.contains(&format!("<!-- story: {name} -->")), "{name}");
    }
}

#[test]
fn the_document_of_lazy_restores_has_a_story_for_every_clause() {
    for clause in LazyClause::ALL {
        let name = clause.name();
        assert!(LAZY.contains(&format!("<!-- story: {name} -->")), "{name}");
    }
}

#[test]
fn the_document_of_postcopy_has_a_story_for_every_clause() {
    for clause in PostcopyClause::ALL {
        let name = clause.name();
        let comment = format!("<!-- story: {name} -->");
        assert!(POSTCOPY.contains(&comment), "{name}");
    }
}

#[test]
fn the_document_has_a_story_for_every_clause() {
    for clause in Clause::ALL {
        let name = clause.name();
        assert!(
            DOCUMENT.contains(&format!("<!-- story: {name} -->")),
            "{name}"
        );
    }
}
