// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counts dirty pages with a dirty log.

use std::fmt;

use super::{DirtyMeter, DirtyMeterError};
use crate::memory::bitmap::MigrationBitmap;
use crate::vm::dirty_log::{DirtyLog, DirtyLogError};

/// Counts what a dirty log has. The log is on while this exists, so nobody else may use it meanwhile.
pub struct LogMeter {
    log: Box<dyn DirtyLog>,
    /// Empty between two looks.
    found: MigrationBitmap,
    seen: MigrationBitmap,
}

impl LogMeter {
    /// Starts `log`, which is off, of a guest whose bitmap has so many `pages`.
    ///
    /// # Errors
    /// [`DirtyLogError`] if the log cannot be started. It is off then.
    pub fn start(log: Box<dyn DirtyLog>, pages: u64) -> Result<Self, DirtyLogError> {
        let mut meter = Self {
            log,
            found: MigrationBitmap::new(pages),
            seen: MigrationBitmap::new(pages),
        };
        meter.log.start()?;
        Ok(meter)
    }
}

impl fmt::Debug for LogMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogMeter")
            .field("distinct", &self.distinct())
            .finish_non_exhaustive()
    }
}

impl DirtyMeter for LogMeter {
    fn look(&mut self) -> Result<u64, DirtyMeterError> {
        self.log.harvest(&self.found)?;
        let found = self.found.count();
        self.found.move_into(&self.seen, 0);
        Ok(found)
    }

    fn distinct(&self) -> u64 {
        self.seen.count()
    }
}

impl Drop for LogMeter {
    fn drop(&mut self) {
        if let Err(error) = self.log.stop() {
            log::warn!("after the dirty rate was measured: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use spec::PageRange;

    use super::*;
    use crate::vm::dirty_log::LogSource;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<(bool, BTreeSet<u64>)>>);

    impl DirtyLog for Written {
        fn source(&self) -> LogSource {
            LogSource::Kvm
        }

        fn start(&mut self) -> Result<(), DirtyLogError> {
            *self.0.lock() = (true, BTreeSet::new());
            Ok(())
        }

        fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
            let pages = std::mem::take(&mut self.0.lock().1);
            for pfn in &pages {
                bitmap.insert(PageRange::new(*pfn, 1).unwrap());
            }
            Ok(pages.len() as u64)
        }

        fn stop(&mut self) -> Result<(), DirtyLogError> {
            self.0.lock().0 = false;
            Ok(())
        }
    }

    #[test]
    fn pages_count_once_a_look_and_once_in_all_and_the_log_is_off_afterwards() {
        let log = Written::default();
        log.0.lock().1.insert(3);
        let mut meter = LogMeter::start(Box::new(log.clone()), 100).unwrap();
        assert_eq!(meter.look().unwrap(), 0, "written before");
        log.0.lock().1.extend([1, 2, 99]);
        assert_eq!(meter.look().unwrap(), 3);
        log.0.lock().1.extend([2, 50]);
        assert_eq!(meter.look().unwrap(), 2);
        assert_eq!(meter.distinct(), 4);
        assert!(log.0.lock().0);
        drop(meter);
        assert!(!log.0.lock().0);
    }
}
