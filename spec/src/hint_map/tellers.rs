// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who tells which pages.

/// Who can tell that a page is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tellers {
    /// The guest's balloon driver, in blocks.
    pub driver: bool,
    /// The guest's agent, page by page.
    pub agent: bool,
}

impl Tellers {
    /// Whoever is there.
    pub const ALL: Self = Self {
        driver: true,
        agent: true,
    };

    /// Whether anybody is meant.
    pub const fn any(self) -> bool {
        self.driver || self.agent
    }
}

/// The free pages of a word, by who has told them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintBits {
    /// The driver.
    pub driver: u64,
    /// The agent.
    pub agent: u64,
}

impl HintBits {
    /// By anybody.
    pub const fn pages(self) -> u64 {
        self.driver | self.agent
    }

    /// Those of `mask` that `tellers` have told.
    pub const fn of(self, tellers: Tellers, mask: u64) -> Self {
        Self {
            driver: if tellers.driver {
                self.driver & mask
            } else {
                0
            },
            agent: if tellers.agent { self.agent & mask } else { 0 },
        }
    }
}
