// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest programs, built and embedded by this crate's build script.

/// The first process of the stock Linux guest: a static ELF executable.
pub const LINUX_INIT: &[u8] = include_bytes!(env!("LINUX_INIT"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linux_guests_first_process_is_an_elf_executable() {
        assert!(LINUX_INIT.starts_with(b"\x7fELF"));
    }
}
