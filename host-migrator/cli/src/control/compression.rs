// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a migration's compression is named in commands.

use host_migrator::{Compression, ZstdLevel};
use serde::{Deserialize, Serialize};

/// How pages are compressed on their way.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CompressionName {
    /// Not at all
    #[default]
    None,
    /// LZ4: fast, shrinks less
    Lz4,
    /// Zstandard: slower, shrinks more
    Zstd,
}

impl CompressionName {
    /// The compression of this name. Of those only Zstandard has a level, 1 by default.
    ///
    /// # Errors
    /// A sentence, if there is no such level.
    pub fn with_level(self, level: Option<u8>) -> Result<Compression, String> {
        if self != Self::Zstd && level.is_some() {
            return Err("multifd-zstd-level needs the multifd-compression zstd".into());
        }
        Ok(match self {
            Self::None => Compression::None,
            Self::Lz4 => Compression::Lz4,
            Self::Zstd => Compression::Zstd {
                level: match level {
                    None => ZstdLevel::default(),
                    Some(level) => ZstdLevel::new(level).ok_or_else(|| {
                        let (least, most) = (ZstdLevel::MIN.get(), ZstdLevel::MAX.get());
                        format!("multifd-zstd-level is {level}, and must be {least} to {most}")
                    })?,
                },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zstd_has_levels() {
        let zstd = |level| CompressionName::Zstd.with_level(level);
        let level = |compression: Compression| compression.level().map(ZstdLevel::get);
        assert_eq!(zstd(None).map(level), Ok(Some(1)));
        assert_eq!(zstd(Some(20)).map(level), Ok(Some(20)));
        for wrong in [0, 21, 255] {
            assert!(zstd(Some(wrong)).unwrap_err().contains("must be 1 to 20"));
        }
        assert_eq!(CompressionName::Lz4.with_level(None), Ok(Compression::Lz4));
        for name in [CompressionName::None, CompressionName::Lz4] {
            let error = name.with_level(Some(1)).unwrap_err();
            assert!(error.contains("needs the multifd-compression zstd"));
        }
    }
}
