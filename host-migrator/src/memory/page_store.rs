// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the pages of a guest are placed as they arrive.

use spec::PageRange;

use super::error::RamError;
use super::guest_memory::GuestMemory;
use super::layout::Layout;

/// A place for the pages of a guest. All [`GuestMemory`] is one.
///
/// Several threads may place pages at once, but never the same page.
pub trait PageStore: Send + Sync {
    /// Where the guest's memory lies.
    fn layout(&self) -> &Layout;

    /// Places `content`, which has their size, in the pages of `range`. They are in one region.
    ///
    /// # Errors
    /// [`RamError`] if the pages are not in one region, or there is no room for them.
    fn place(&self, range: PageRange, content: &[u8]) -> Result<(), RamError>;

    /// From now on the pages of `range` read as zero. They are in one region.
    ///
    /// # Errors
    /// [`RamError`] if the pages are not in one region, or cannot be made zero.
    fn make_zero(&self, range: PageRange) -> Result<(), RamError>;

    /// Whether it takes pages of one thread at a time, so that it is of no use to place several at once.
    fn is_placed_by_one(&self) -> bool {
        false
    }

    /// Whether all pages are known to be zero, without a look at them.
    fn is_known_zero(&self) -> bool {
        false
    }

    /// Makes all pages zero, whatever an earlier attempt has left: zero pages need not be sent.
    ///
    /// # Errors
    /// As [`PageStore::make_zero`].
    fn clear(&self) -> Result<(), RamError> {
        if self.is_known_zero() {
            return Ok(());
        }
        let mut regions = self.layout().regions().iter();
        regions.try_for_each(|region| self.make_zero(*region))
    }
}

/// No place at all: for a machine whose memory comes with its guest, in a local hand-over
/// ([`DestinationMachine::take_memory`](crate::DestinationMachine::take_memory)). A source that sends pages is refused.
impl PageStore for Layout {
    fn layout(&self) -> &Layout {
        self
    }

    fn place(&self, _range: PageRange, _content: &[u8]) -> Result<(), RamError> {
        Err(RamError::LentOnly)
    }

    fn make_zero(&self, _range: PageRange) -> Result<(), RamError> {
        Err(RamError::LentOnly)
    }
}

impl<M: GuestMemory + ?Sized> PageStore for M {
    fn layout(&self) -> &Layout {
        GuestMemory::layout(self)
    }

    fn place(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        self.write(range, content)
    }

    fn make_zero(&self, range: PageRange) -> Result<(), RamError> {
        self.discard(range)
    }

    fn is_placed_by_one(&self) -> bool {
        self.is_written_by_one()
    }

    fn is_known_zero(&self) -> bool {
        GuestMemory::is_known_zero(self)
    }
}
