// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest programs, built and embedded by this crate's build script.

/// The first process of the stock Linux guest: a static ELF executable.
pub const LINUX_INIT: &[u8] = include_bytes!(env!("LINUX_INIT"));

/// The agent for Linux guests: a static ELF executable that needs /proc, /sys and /dev, and the rights of root.
pub const LINUX_AGENT: &[u8] = include_bytes!(env!("LINUX_AGENT"));

/// The bare-metal guest: a static ELF executable that is linked for, and starts at,
/// [`spec::bare::IMAGE_GPA`].
pub const BARE_GUEST: &[u8] = include_bytes!(env!("BARE_GUEST"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linux_guests_programs_are_elf_executables() {
        for program in [LINUX_INIT, LINUX_AGENT] {
            assert!(program.starts_with(b"\x7fELF"));
        }
    }

    #[test]
    fn the_bare_guest_is_an_elf_executable_that_starts_at_its_image_address() {
        const FIXED_ADDRESS: u8 = 2;
        assert!(BARE_GUEST.starts_with(b"\x7fELF"));
        assert_eq!(BARE_GUEST[16], FIXED_ADDRESS);
        let entry = u64::from_le_bytes(BARE_GUEST[24..32].try_into().unwrap());
        assert_eq!(entry, spec::bare::IMAGE_GPA);
    }
}
