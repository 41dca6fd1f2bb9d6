// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stories in the document are the model's.

use spec_model::{Clause, document};

const DOCUMENT: &str = include_str!("../free-page-hinting.md");

#[test]
fn the_documents_stories_are_the_models() {
    let retold = document::retell(DOCUMENT).unwrap();
    assert!(
        retold == DOCUMENT,
        "tell them anew: cargo run -p lacuna-spec --example explore -- retell spec/free-page-hinting.md"
    );
}

#[test]
fn the_document_tells_of_every_clause() {
    for clause in Clause::ALL {
        let name = clause.name();
        assert!(
            DOCUMENT.contains(&format!("<!-- story: {name} -->")),
            "{name}"
        );
    }
}
