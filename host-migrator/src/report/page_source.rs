// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sources that say that a page need not be sent: their names, which of them a migration uses, and how many pages each
//! saved.

use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spec::hint_map::{HintBits, Tellers};

/// A source that says that a page need not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PageSource {
    /// The guest's balloon driver hints the page.
    Driver,
    /// The guest's agent reports the page as free.
    Agent,
    /// The page is a hole of the memory file: it was never touched.
    Holes,
    /// The page is a hole because it is in the balloon.
    Balloon,
    /// The page is a hole because the guest reported it as free.
    Reported,
    /// The page is read, and all its bytes are zero.
    Zero,
}

impl PageSource {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Driver,
        Self::Agent,
        Self::Holes,
        Self::Balloon,
        Self::Reported,
        Self::Zero,
    ];

    /// The name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Agent => "agent",
            Self::Holes => "holes",
            Self::Balloon => "balloon",
            Self::Reported => "reported",
            Self::Zero => "zero",
        }
    }
}

impl fmt::Display for PageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is not that of a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a source of free pages")]
pub struct UnknownSource(String);

impl FromStr for PageSource {
    type Err = UnknownSource;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        (Self::ALL.into_iter())
            .find(|source| source.name() == name)
            .ok_or_else(|| UnknownSource(name.to_owned()))
    }
}

/// The sources that a migration uses.
///
/// ```
/// use host_migrator::{PageSource, PageSources};
/// let sources: PageSources = [PageSource::Agent, PageSource::Zero].into_iter().collect();
/// assert!(sources.contains(PageSource::Zero));
/// assert_eq!(sources.to_string(), "agent,zero");
/// assert_eq!(PageSources::default(), PageSources::ALL);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<PageSource>", into = "Vec<PageSource>")]
pub struct PageSources(u8);

impl PageSources {
    /// Every source. A source that does not exist in this migration adds nothing.
    pub const ALL: Self = Self(0x3f);
    /// No source: every page is sent.
    pub const NONE: Self = Self(0);

    /// Whether `source` is used.
    pub const fn contains(self, source: PageSource) -> bool {
        self.0 & (1 << source as u8) != 0
    }

    /// The same set without `source`.
    pub const fn without(self, source: PageSource) -> Self {
        Self(self.0 & !(1 << source as u8))
    }

    /// The same set without hints from the guest.
    pub const fn without_hints(self) -> Self {
        self.without(PageSource::Driver).without(PageSource::Agent)
    }

    /// The tellers whose hints are used.
    pub(crate) const fn tellers(self) -> Tellers {
        Tellers {
            driver: self.contains(PageSource::Driver),
            agent: self.contains(PageSource::Agent),
        }
    }

    /// The sources, in the order of [`PageSource::ALL`].
    pub fn iter(self) -> impl Iterator<Item = PageSource> {
        (PageSource::ALL.into_iter()).filter(move |source| self.contains(*source))
    }
}

impl Default for PageSources {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<PageSource> for PageSources {
    fn from_iter<I: IntoIterator<Item = PageSource>>(sources: I) -> Self {
        let add = |set, source| set | 1 << source as u8;
        Self(sources.into_iter().fold(0, add))
    }
}

impl From<Vec<PageSource>> for PageSources {
    fn from(sources: Vec<PageSource>) -> Self {
        sources.into_iter().collect()
    }
}

impl From<PageSources> for Vec<PageSource> {
    fn from(sources: PageSources) -> Self {
        sources.iter().collect()
    }
}

impl fmt::Display for PageSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(PageSource::name).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for PageSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSources({self})")
    }
}

/// Numbers of pages by source. A page that driver and agent both hinted has its own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[non_exhaustive]
pub struct PagesBySource {
    /// Hinted by the driver alone.
    pub driver: u64,
    /// Reported by the agent alone.
    pub agent: u64,
    /// Reported by both.
    pub both: u64,
    /// Holes that were never touched.
    pub holes: u64,
    /// Holes in the balloon.
    pub balloon: u64,
    /// Holes that were reported free.
    pub reported: u64,
    /// Read, and found to be zero.
    pub zero: u64,
}

impl PagesBySource {
    /// The counts with their JSON names, in a fixed order.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("driver", self.driver),
            ("agent", self.agent),
            ("both", self.both),
            ("holes", self.holes),
            ("balloon", self.balloon),
            ("reported", self.reported),
            ("zero", self.zero),
        ]
    }

    /// Pages of all sources together.
    pub fn sum(&self) -> u64 {
        self.named().iter().map(|(_, pages)| pages).sum()
    }

    /// Adds `pages` that were left out for `reason`.
    pub(crate) fn add(&mut self, reason: Reason, pages: u64) {
        let field = match reason {
            Reason::Driver => &mut self.driver,
            Reason::Agent => &mut self.agent,
            Reason::Both => &mut self.both,
            Reason::Hole => &mut self.holes,
            Reason::Balloon => &mut self.balloon,
            Reason::Reported => &mut self.reported,
            Reason::Zero => &mut self.zero,
        };
        *field += pages;
    }
}

impl AddAssign for PagesBySource {
    fn add_assign(&mut self, other: Self) {
        self.driver += other.driver;
        self.agent += other.agent;
        self.both += other.both;
        self.holes += other.holes;
        self.balloon += other.balloon;
        self.reported += other.reported;
        self.zero += other.zero;
    }
}

/// Why a page was left out. [`crate::walk`] keeps these numbers in three planes, where 0 means not left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Driver = 1,
    Agent = 2,
    Both = 3,
    Hole = 4,
    Balloon = 5,
    Reported = 6,
    Zero = 7,
}

impl Reason {
    pub(crate) const ALL: [Self; 7] = [
        Self::Driver,
        Self::Agent,
        Self::Both,
        Self::Hole,
        Self::Balloon,
        Self::Reported,
        Self::Zero,
    ];

    /// The reasons that are hints.
    pub(crate) const HINTED: [Self; 3] = [Self::Driver, Self::Agent, Self::Both];

    /// The pages of `told`, by teller.
    pub(crate) fn by_teller(told: HintBits) -> [(Self, u64); 3] {
        let HintBits { driver, agent } = told;
        [
            (Self::Driver, driver & !agent),
            (Self::Agent, agent & !driver),
            (Self::Both, driver & agent),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_has_a_name_of_its_own_and_a_place_in_the_set() {
        for source in PageSource::ALL {
            assert_eq!(source.name().parse(), Ok(source));
            assert!(PageSources::ALL.contains(source));
            assert!(!PageSources::NONE.contains(source));
            assert!(!PageSources::ALL.without(source).contains(source));
        }
        assert!("hole".parse::<PageSource>().is_err());
    }

    #[test]
    fn the_sum_holds_every_source() {
        let mut pages = PagesBySource::default();
        for reason in Reason::ALL {
            pages.add(reason, 1 << (reason as u8));
        }
        assert_eq!(pages.sum(), 0b1111_1110);
        pages += pages;
        assert_eq!(pages.sum(), 0b1_1111_1100);
    }
}
