// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A balloon that takes memory while the guest is migrated, and logs it as a vhost-user back end does.

use std::sync::Arc;

use host_migrator::{DirtyLog, DirtyLogError, LogSource, MigrationBitmap};
use spec::PageRange;

use super::Guest;
use super::memory::one;

/// Takes `pages` when the first round ends.
pub struct Balloon {
    guest: Arc<Guest>,
    pages: PageRange,
    is_full: bool,
}

impl Balloon {
    pub fn new(guest: &Arc<Guest>, pages: PageRange) -> Self {
        Self {
            guest: Arc::clone(guest),
            pages,
            is_full: false,
        }
    }
}

impl DirtyLog for Balloon {
    fn source(&self) -> LogSource {
        LogSource::VhostUser
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        if std::mem::replace(&mut self.is_full, true) {
            return Ok(0);
        }
        self.guest.memory.ram.discard(self.pages).unwrap();
        for pfn in self.pages.first()..self.pages.end() {
            self.guest.memory.free(pfn);
            bitmap.insert(one(pfn));
        }
        Ok(self.pages.count())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}
