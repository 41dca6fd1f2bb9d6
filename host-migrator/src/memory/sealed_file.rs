// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory files of fixed size.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// A new memory file of `bytes` zeros, called `name` where the kernel lists files. Processes that share it can write to it,
/// but not truncate it, which would make the accesses of others fault.
///
/// # Errors
/// [`io::Error`] if the kernel refuses the file or its size.
pub fn sealed_file(name: &str, bytes: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags)?);
    file.set_len(bytes)?;
    // Also sealed against further seals: a seal against writing would stop the process that fills the memory.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn its_content_can_be_changed_and_nothing_else() {
        let file = sealed_file("test", 8192).unwrap();
        file.write_all_at(&[1], 8191).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
        for bytes in [0, 4096, 8193] {
            assert!(file.set_len(bytes).is_err(), "{bytes}");
        }
        assert!(fcntl_add_seals(&file, SealFlags::WRITE).is_err());
    }
}
