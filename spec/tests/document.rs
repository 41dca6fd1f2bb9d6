// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stories in the document are those of the model.

use spec_model::{Clause, document};

const DOCUMENT: &str = include_str!("../free-page-hinting.md");

#[test]
fn the_documents_stories_are_the_models() {
    let retold = document::retell(DOCUMENT).unwrap();
    assert!(
        retold == DOCUMENT,
        "write them again: cargo run -p lacuna-spec --example explore -- retell spec/free-page-hinting.md"
    );
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
