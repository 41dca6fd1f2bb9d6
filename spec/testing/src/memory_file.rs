// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory files as well-behaved programs share them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use spec::hint_map::{MAGIC, VERSION, bytes_for};

/// A memory file of `bytes` zero bytes, sealed against shrinking.
///
/// # Panics
/// If this machine cannot make one.
pub fn sealed(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("test", flags).expect("a memory file");
    ftruncate(&file, bytes).expect("room in it");
    fcntl_add_seals(&file, SealFlags::SHRINK).expect("a seal");
    file
}

/// An empty hint map for `pages` pages, as a migrator makes it, and its size in bytes.
///
/// # Panics
/// If this machine cannot make the file, or no map can be so large.
pub fn hint_map(pages: u64) -> (OwnedFd, u64) {
    let bytes = bytes_for(pages).expect("a map may be so large");
    let file = File::from(sealed(bytes));
    for (word, value) in (0..).zip([MAGIC, VERSION, pages]) {
        file.write_all_at(&value.to_le_bytes(), word * 8)
            .expect("a header");
    }
    (file.into(), bytes)
}
