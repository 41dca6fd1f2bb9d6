// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `lacuna convert`.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use host_migrator::PageRange;
use spec::PAGE_SIZE;

use crate::size::Size;

/// `lacuna convert`
#[derive(Clone, Debug, Args)]
pub struct ConvertArgs {
    /// The file to read: a snapshot (PATH, file:PATH or file:PATH,offset=N) or a raw memory image
    pub input: String,
    /// The file to write. It gets its name when it is complete, and replaces a file of that name then
    pub output: String,
    /// What to make
    #[arg(long, value_enum)]
    pub to: Converted,
    /// How the regions of guest memory lie in the raw image
    #[arg(long, value_enum, default_value = "concatenated")]
    pub layout: ImageLayout,
    /// To a snapshot: take the regions of memory, the machine's description and its state from this snapshot. A snapshot that
    /// was converted to an image comes back like this
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "region")]
    pub like: Option<String>,
    /// To a snapshot: a region of guest memory, at this guest-physical address (decimal, or hexadecimal with 0x). Give it once
    /// for each region, by ascending address. The snapshot has memory only, no machine: `lacuna receive` refuses it
    #[arg(long, value_name = "ADDRESS:SIZE")]
    pub region: Vec<RegionArg>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Converted {
    /// A raw memory image: the bytes of guest memory and nothing else. Pages that are zero are holes in it
    Raw,
    /// A snapshot file
    Snapshot,
}

/// How regions lie in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageLayout {
    /// One after the other without gaps, as in Firecracker's memory file
    Concatenated,
    /// Each at its guest-physical address, with holes between them
    Addresses,
}

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionArg(pub PageRange);

impl FromStr for RegionArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not ADDRESS:SIZE, such as 0:3G or 0x100000000:1G");
        let (address, size) = text.split_once(':').ok_or_else(bad)?;
        let address = match address.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => address.parse(),
        };
        let address = address.map_err(|_| bad())?;
        let Size(size) = size.parse().map_err(|error| format!("{error}"))?;
        let whole = address.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE);
        let pages = PageRange::new(address / PAGE_SIZE, size / PAGE_SIZE);
        pages
            .filter(|_| whole && address.checked_add(size).is_some())
            .map(Self)
            .ok_or_else(|| format!("'{text}' is not a region of whole pages of {PAGE_SIZE} bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_read_as_people_write_them() {
        let region = |text: &str| text.parse().map(|RegionArg(pages)| pages);
        assert_eq!(region("0:1M"), Ok(PageRange::new(0, 256).unwrap()));
        let high = PageRange::new(1 << 20, 2).unwrap();
        assert_eq!(region("0x100000000:8K"), Ok(high));
        assert_eq!(region("4294967296:8192"), Ok(high));
        for text in [
            "",
            "0",
            "0:",
            ":1M",
            "0:0",
            "1:1M",
            "0:4097",
            "0x:1M",
            "-1:1M",
            "0xfffffffffffff000:8K",
        ] {
            assert!(region(text).is_err(), "{text}");
        }
    }
}
