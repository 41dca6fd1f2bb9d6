// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The values of options.

use clap::ValueEnum;
use spec::balloon::QueueNumbering;

/// The values of `--queue-numbering`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Numbering {
    /// Queues without their feature have no number, as in Linux and QEMU.
    Dense,
    /// Every queue has its number in the virtio specification.
    Fixed,
}

impl From<Numbering> for QueueNumbering {
    fn from(numbering: Numbering) -> Self {
        match numbering {
            Numbering::Dense => Self::Dense,
            Numbering::Fixed => Self::Fixed,
        }
    }
}

/// The values of `--agent-transport`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AgentTransport {
    /// A virtio-console port or a serial line, which only root can open in the guest. The agent needs no key.
    Console,
    /// A vsock, or another transport that every process of the guest can open. The agent must prove that it has --agent-key.
    #[default]
    Vsock,
}

/// Reads a size in bytes, or in units of K, M, G or T.
pub(super) fn bytes(size: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let (number, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| {
            let lower = unit.to_ascii_lowercase();
            Some((size.strip_suffix([unit, lower])?, shift))
        })
        .unwrap_or((size, 0));
    let number: u64 = number.parse().map_err(|error| format!("{error}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more than a guest can have".into())
}

/// Reads a size as whole pages of 4 KiB.
pub(super) fn pages(size: &str) -> Result<u32, String> {
    let bytes = bytes(size)?;
    if (1..spec::PAGE_SIZE).contains(&bytes) {
        let meant = size.trim_end_matches(|c: char| !c.is_ascii_digit());
        return Err(format!(
            "{bytes} bytes are less than one page: did you mean {meant}M?"
        ));
    }
    u32::try_from(bytes / spec::PAGE_SIZE).map_err(|_| "more than a balloon can hold".into())
}

/// Reads a device's name, which must fit into a line of the log, a label of a metric and the name of a unit.
pub(super) fn device_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
    if (1..=MAX_NAME).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.into())
    } else {
        Err(format!(
            "write 1 to {MAX_NAME} letters, digits or any of ._@-"
        ))
    }
}

/// The longest name of a device.
pub(super) const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_whole_pages_that_a_balloon_can_hold() {
        for (size, expected) in [("0", 0), ("4096", 1), ("8191", 1)] {
            assert_eq!(pages(size), Ok(expected), "{size}");
        }
        assert_eq!(pages("512M"), Ok(131_072));
        assert_eq!(pages("1g"), Ok(262_144));
        assert_eq!(pages("15T"), Ok(15 << 28));
        for size in [
            "",
            "M",
            "-1",
            "1.5G",
            "64",
            "2k",
            "16T",
            "18446744073709551615K",
            "1\u{e4}",
        ] {
            assert!(pages(size).is_err(), "{size}");
        }
    }

    #[test]
    fn a_name_fits_into_a_line() {
        assert_eq!(device_name("vm-1.b@x_2").unwrap(), "vm-1.b@x_2");
        for wrong in ["", "a b", "a\nb", "\u{e4}", "a/b", "a\"", &"x".repeat(65)] {
            assert!(device_name(wrong).is_err(), "{wrong}");
        }
    }
}
