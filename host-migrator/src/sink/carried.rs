// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What sections of pages have carried, and how far it has shrunk on its way.

use std::ops::AddAssign;

use spec::PAGE_SIZE;

/// Pages that a sink has sent, and what compression made of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Pages sent with content, compressed or not.
    pub pages: u64,
    /// Of these, pages that were compressed.
    pub compressed_pages: u64,
    /// The bytes that these were compressed to, without headers and tables.
    pub compressed_bytes: u64,
}

impl Carried {
    /// Bytes on the way for each byte of content, without headers and tables: 1 if nothing was compressed.
    pub fn shrink(self) -> f64 {
        let bytes = |pages: u64| (pages * PAGE_SIZE) as f64;
        if self.pages == 0 {
            return 1.0;
        }
        let saved = bytes(self.compressed_pages) - self.compressed_bytes as f64;
        1.0 - saved / bytes(self.pages)
    }

    /// What was carried since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            pages: self.pages - before.pages,
            compressed_pages: self.compressed_pages - before.compressed_pages,
            compressed_bytes: self.compressed_bytes - before.compressed_bytes,
        }
    }

    /// How many times smaller the compressed pages have become; none if there are no such pages.
    pub fn compression_rate(self) -> Option<f64> {
        let bytes = (self.compressed_pages * PAGE_SIZE) as f64;
        (self.compressed_bytes > 0).then(|| bytes / self.compressed_bytes as f64)
    }
}

impl AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.compressed_pages += other.compressed_pages;
        self.compressed_bytes += other.compressed_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_compressed_pages_shrink_together() {
        assert_eq!(Carried::default().shrink(), 1.0);
        let mut carried = Carried {
            pages: 10,
            ..Carried::default()
        };
        assert_eq!((carried.shrink(), carried.compression_rate()), (1.0, None));
        carried += Carried {
            pages: 10,
            compressed_pages: 10,
            compressed_bytes: 10 * PAGE_SIZE / 4,
        };
        assert_eq!(carried.shrink(), 0.625);
        assert_eq!(carried.compression_rate(), Some(4.0));
    }
}
