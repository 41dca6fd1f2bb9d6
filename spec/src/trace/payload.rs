// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data of events (pages, logs, numbers), and its encoding in a slot.

use core::fmt;

use crate::PageRange;

/// Some of the 64 pages from page `64 * word` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBits {
    /// The word of a bitmap that begins at guest-physical 0.
    pub word: u64,
    /// Bit `b` is page `64 * word + b`.
    pub mask: u64,
}

/// Pages that were hinted in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hinted {
    /// The epoch.
    pub epoch: u64,
    /// The pages.
    pub pages: PageRange,
}

/// Whose writes a log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Writer {
    /// The vCPUs.
    Vcpus = 1,
    /// A vhost-user back end.
    BackEnd = 2,
    /// The VMM itself.
    Vmm = 3,
}

impl Writer {
    const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Vcpus,
            2 => Self::BackEnd,
            3 => Self::Vmm,
            _ => return None,
        })
    }
}

/// A dirty log of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Its number in this migration, from 0.
    pub index: u8,
    /// Whose writes it records.
    pub writer: Writer,
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let writer = match self.writer {
            Writer::Vcpus => "vCPUs",
            Writer::BackEnd => "back end",
            Writer::Vmm => "VMM",
        };
        write!(f, "log {} ({writer})", self.index)
    }
}

/// Pages of one word that a log brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The log.
    pub log: Log,
    /// The pages.
    pub pages: PageBits,
}

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The destination runs the guest.
    Completed = 1,
    /// The guest stays here.
    Failed = 2,
    /// Failed because an operator cancelled it.
    Cancelled = 3,
    /// The guest was handed over; the destination did not confirm.
    Unconfirmed = 4,
}

/// The fields of a record besides kind and actor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields {
    pub(super) extra: u32,
    pub(super) epoch: u64,
    pub(super) first: u64,
    pub(super) value: u64,
}

/// What an event says, as fields.
pub(super) trait Payload: Sized {
    fn put(self) -> Fields;
    fn take(fields: Fields) -> Option<Self>;
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl Payload for u64 {
    fn put(self) -> Fields {
        Fields {
            value: self,
            ..Fields::default()
        }
    }

    fn take(fields: Fields) -> Option<Self> {
        Some(fields.value)
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " {self}")
    }
}

impl Payload for bool {
    fn put(self) -> Fields {
        u64::from(self).put()
    }

    fn take(fields: Fields) -> Option<Self> {
        Some(fields.value != 0)
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self { ": yes" } else { ": no" })
    }
}

impl Payload for PageRange {
    fn put(self) -> Fields {
        Fields {
            first: self.first(),
            value: self.count(),
            ..Fields::default()
        }
    }

    fn take(fields: Fields) -> Option<Self> {
        Self::new(fields.first, fields.value)
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 1 {
            write!(f, " page {:#x}", self.first())
        } else {
            write!(f, " pages {:#x}..{:#x}", self.first(), self.end())
        }
    }
}

impl Payload for PageBits {
    fn put(self) -> Fields {
        Fields {
            first: self.word,
            value: self.mask,
            ..Fields::default()
        }
    }

    fn take(fields: Fields) -> Option<Self> {
        // Its pages have numbers.
        (fields.first <= u64::MAX >> 6).then_some(Self {
            word: fields.first,
            mask: fields.value,
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mask.count_ones();
        write!(f, " {count} of the pages from {:#x} on", self.word * 64)?;
        if count < 64 {
            write!(f, " (bits {:#x})", self.mask)?;
        }
        Ok(())
    }
}

impl Payload for Hinted {
    fn put(self) -> Fields {
        Fields {
            epoch: self.epoch,
            ..self.pages.put()
        }
    }

    fn take(fields: Fields) -> Option<Self> {
        Some(Self {
            epoch: fields.epoch,
            pages: PageRange::take(fields)?,
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pages.show(f)?;
        write!(f, " in epoch {}", self.epoch)
    }
}

impl Payload for Log {
    fn put(self) -> Fields {
        Fields {
            extra: u32::from(self.index) | (self.writer as u32) << 8,
            ..Fields::default()
        }
    }

    fn take(fields: Fields) -> Option<Self> {
        let [index, writer, ..] = fields.extra.to_le_bytes();
        Some(Self {
            index,
            writer: Writer::from_raw(writer)?,
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " {self}")
    }
}

impl Payload for Brought {
    fn put(self) -> Fields {
        Fields {
            extra: self.log.put().extra,
            ..self.pages.put()
        }
    }

    fn take(fields: Fields) -> Option<Self> {
        Some(Self {
            log: Log::take(fields)?,
            pages: PageBits::take(fields)?,
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.log.show(f)?;
        self.pages.show(f)
    }
}

impl Payload for Outcome {
    fn put(self) -> Fields {
        (self as u64).put()
    }

    fn take(fields: Fields) -> Option<Self> {
        Some(match fields.value {
            1 => Self::Completed,
            2 => Self::Failed,
            3 => Self::Cancelled,
            4 => Self::Unconfirmed,
            _ => return None,
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ": {self:?}")
    }
}
