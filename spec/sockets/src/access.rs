// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who may connect to a socket.

use rustix::fs::{Gid, Mode};

/// The rights of a socket's file. A client needs the right to write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Permission bits, exactly these under any umask.
    pub mode: Mode,
    /// The file's group; `None` means that of the process, or of the folder if the folder has the setgid bit.
    pub group: Option<Gid>,
}

impl Access {
    /// Only its owner (and root) may connect.
    pub const OWNER: Self = Self {
        mode: Mode::RUSR.union(Mode::WUSR),
        group: None,
    };

    /// The rights that an operator asked for. By default only the owner may connect.
    #[must_use]
    pub fn new(mode: Option<Mode>, group: Option<Gid>) -> Self {
        Self {
            mode: mode.unwrap_or(Self::OWNER.mode),
            group,
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::OWNER
    }
}

/// Reads permission bits: at most three octal digits, which may follow a 0.
///
/// # Errors
/// A sentence that says what to write.
pub fn mode(text: &str) -> Result<Mode, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&bits| bits <= 0o777 && !text.starts_with('+'))
        .map(Mode::from_raw_mode)
        .ok_or_else(|| format!("'{text}' is not a mode: write octal permission bits, such as 660"))
}

/// Reads the name or the number of a group of this host.
///
/// # Errors
/// A sentence that says why there is none.
pub fn group(text: &str) -> Result<Gid, String> {
    // The largest number means "no change" to the kernel.
    if let Some(number) = text.parse().ok().filter(|&number: &u32| number != u32::MAX) {
        return Ok(Gid::from_raw(number));
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(Gid::from_raw(group.gid.as_raw())),
        Ok(None) => Err(format!("this host has no group '{text}'")),
        Err(error) => Err(format!("the group '{text}' cannot be looked up: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_at_most_three_octal_digits() {
        assert_eq!(mode("0660").unwrap().bits(), 0o660);
        for wrong in ["", "1000", "rw", "8", "-1", "+660"] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_group_has_a_name_or_a_number() {
        assert_eq!(group("root").unwrap().as_raw(), 0);
        assert_eq!(group("1234").unwrap().as_raw(), 1234);
        for wrong in ["", "no such group", "-1", "4294967295"] {
            assert!(group(wrong).is_err(), "{wrong}");
        }
    }
}
