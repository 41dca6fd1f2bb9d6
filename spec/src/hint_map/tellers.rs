// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sources of hints, and which pages each has hinted.

/// A choice of the sources of hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tellers {
    /// The guest's balloon driver, in blocks.
    pub driver: bool,
    /// The guest's agent, page by page.
    pub agent: bool,
}

impl Tellers {
    /// All sources.
    pub const ALL: Self = Self {
        driver: true,
        agent: true,
    };

    /// Whether any source is chosen.
    pub const fn any(self) -> bool {
        self.driver || self.agent
    }
}

/// The hinted pages of a 64-page word, by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintBits {
    /// Hinted by the driver.
    pub driver: u64,
    /// Reported by the agent.
    pub agent: u64,
}

impl HintBits {
    /// Hinted by any source.
    pub const fn pages(self) -> u64 {
        self.driver | self.agent
    }

    /// Those of the pages in `mask` that `tellers` have hinted.
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
