// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must hold in every state, whenever somebody restores from the file's final name.

use stateright::Property;

use super::disk::{Id, OLD, OLD_CONTENT};
use super::loader::{Loaded, load};
use super::saver::{Saver, Step};
use super::state::{FileState, Saving};
use crate::pages::{ModelPages, Page, PerPage};

/// What is restored is what the guest contained when it was stopped for this snapshot.
pub const RESTORED_RIGHT: &str = "what is restored is right";
/// A file that is taken for complete has no damaged page, unless a block has rotted.
pub const COMPLETE_IS_WHOLE: &str = "a complete snapshot is whole";
/// A snapshot stays until a complete one has taken its place, and one that was called complete is there.
pub const SNAPSHOT_STAYS: &str = "a complete snapshot stays";
/// No page that is not in the snapshot takes a block of the file.
pub const FILE_IS_SMALL: &str = "the file is small";

/// A check of the model itself: on some path a save completes.
pub const A_SAVE_COMPLETES: &str = "a save completes";

/// All properties.
pub(crate) fn all() -> Vec<Property<Saving>> {
    vec![
        Property::always(RESTORED_RIGHT, |model, state| {
            match restored(model, state) {
                Loaded::Whole { id, content } => wanted(model, state, id) == Some(content),
                Loaded::Refused | Loaded::Damaged(_) => true,
            }
        }),
        Property::always(COMPLETE_IS_WHOLE, |model, state| {
            has_rotted(model, state) || !matches!(restored(model, state), Loaded::Damaged(_))
        }),
        Property::always(SNAPSHOT_STAYS, |model: &Saving, state: &FileState| {
            let called = state
                .savers(&model.setup)
                .any(|(_, saver)| saver.step == Step::Complete);
            match restored(model, state) {
                _ if has_rotted(model, state) => true,
                Loaded::Whole { id, .. } => !(called && id == OLD),
                Loaded::Refused | Loaded::Damaged(_) => !called && model.setup.in_place,
            }
        }),
        Property::always(FILE_IS_SMALL, |model, state| !is_large(model, state)),
        Property::sometimes(A_SAVE_COMPLETES, |model: &Saving, state: &FileState| {
            state
                .savers(&model.setup)
                .any(|(_, saver)| saver.step == Step::Complete)
        }),
    ]
}

/// What a restore gives now.
pub(crate) fn restored(model: &Saving, state: &FileState) -> Loaded {
    state
        .disk
        .complete()
        .map_or(Loaded::Refused, |file| load(model.rule, &file.cache))
}

/// What a restore of snapshot `id` should give.
pub(crate) fn wanted(model: &Saving, state: &FileState, id: Id) -> Option<PerPage<u8>> {
    if id == OLD {
        let mut content = PerPage::default();
        for page in ModelPages::all(model.setup.pages).iter() {
            content[page.index()] = OLD_CONTENT;
        }
        return Some(content);
    }
    let mut savers = state.savers(&model.setup);
    let (_, saver) = savers.find(|(index, _)| Saver::id(*index) == id)?;
    saver.wanted
}

fn has_rotted(model: &Saving, state: &FileState) -> bool {
    state.rot < model.setup.rot
}

/// Whether a complete file has a block of a page that is not in it.
fn is_large(model: &Saving, state: &FileState) -> bool {
    let Some(file) = state.disk.complete() else {
        return false;
    };
    let is_whole = matches!(load(model.rule, &file.cache), Loaded::Whole { .. });
    let unused =
        |page: Page| file.cache.pages[page.index()] != 0 && !file.cache.bitmap.has.has(page);
    is_whole && !has_rotted(model, state) && ModelPages::all(model.setup.pages).iter().any(unused)
}
