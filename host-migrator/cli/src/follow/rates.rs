// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is sent in a second, from two looks at a migration.

use host_migrator::MigrationStatus;

/// The shortest time in milliseconds that a rate is measured over.
const SPAN: u64 = 200;

/// Measures how fast a migration sends.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Milliseconds and bytes of the last look.
    before: (u64, u64),
    bytes_per_second: u64,
}

impl Rate {
    /// Bytes a second between this look and the one before.
    pub(super) fn look(&mut self, status: &MigrationStatus) -> u64 {
        let now = (status.total_time, status.ram.transferred);
        if now.0 < self.before.0 || now.1 < self.before.1 {
            // Another migration has begun.
            self.before = (0, 0);
        }
        let (ms, bytes) = (now.0 - self.before.0, now.1 - self.before.1);
        if ms >= SPAN {
            self.bytes_per_second = (bytes as f64 * 1000.0 / ms as f64) as u64;
            self.before = now;
        }
        self.bytes_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_between_two_looks_also_of_the_next_migration() {
        let mut rate = Rate::default();
        let mut look = |ms, bytes| {
            let mut status = MigrationStatus::default();
            (status.total_time, status.ram.transferred) = (ms, bytes);
            rate.look(&status)
        };
        assert_eq!(look(1000, 5000), 5000);
        assert_eq!(look(1500, 6000), 2000);
        assert_eq!(look(1501, 7000), 2000, "too short to measure");
        assert_eq!(look(500, 500), 1000, "of another migration");
    }
}
