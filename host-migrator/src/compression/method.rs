// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the operator wants pages compressed.

/// How pages are compressed.
///
/// ```
/// use host_migrator::{Compression, MigrationParams, ZstdLevel};
///
/// let level = ZstdLevel::new(3).ok_or("there is no such level")?;
/// let params = MigrationParams::default().with_compression(Compression::Zstd { level });
/// # assert_eq!(params.compression.name(), "zstd");
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4: fast, for links of a few gigabits a second.
    Lz4,
    /// Zstandard: shrinks more, and takes longer.
    Zstd {
        /// How hard it tries.
        level: ZstdLevel,
    },
}

impl Compression {
    /// Its name on the command line and in reports: `none`, `lz4` or `zstd`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd { .. } => "zstd",
        }
    }

    /// Its level, if it has levels.
    pub const fn level(self) -> Option<ZstdLevel> {
        match self {
            Self::Zstd { level } => Some(level),
            Self::None | Self::Lz4 => None,
        }
    }
}

/// A level of Zstandard, 1 to 20. The default is 1, as in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ZstdLevel(u8);

impl ZstdLevel {
    /// The fastest level.
    pub const MIN: Self = Self(1);
    /// The level that shrinks most. Higher ones need more memory, and shrink a section no further.
    pub const MAX: Self = Self(20);

    /// The level `level`; none if there is no such level.
    pub const fn new(level: u8) -> Option<Self> {
        match level {
            1..=20 => Some(Self(level)),
            _ => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for ZstdLevel {
    fn default() -> Self {
        Self::MIN
    }
}
