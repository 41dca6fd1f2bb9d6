// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that a balloon device gives back to the host. It may discard only what the guest gave up by inflating or
//! reporting, never what the guest hinted. A migration that is under way must log it.

use alloc::format;

use super::attempt::Attempt;
use super::pages::Pages;
use super::{Broken, Clause};
use crate::trace::Event;

/// What the guest of one device has given up.
#[derive(Debug, Default)]
pub(super) struct Discards {
    given_up: Pages,
}

impl Discards {
    pub(super) fn replay(
        &mut self,
        event: Event,
        attempt: Option<&mut Attempt>,
    ) -> Result<(), Broken> {
        match event {
            Event::GivenUp(pages) => self.given_up.insert_range(pages),
            Event::TakenBack(pages) => self.given_up.remove_range(pages),
            Event::Discarding(pages) => {
                if let Some(page) = self.given_up.first_missing(pages) {
                    return Err((
                        Clause::HintDiscardsNothing,
                        format!(
                            "the guest has not given page {page:#x} up, by inflating or reporting"
                        ),
                    ));
                }
                if let Some(attempt) = attempt {
                    attempt.discarding(pages);
                }
            }
            Event::NotDiscarded(pages) => {
                if let Some(attempt) = attempt {
                    attempt.not_discarded(pages);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
