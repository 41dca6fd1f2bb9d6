// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The barest answer to a page fault: a thread reads 4 KiB of a file into the missing page.
#![allow(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread;

use host_migrator::paging::Mapping;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;
use spec::PAGE_SIZE;

// `linux/userfaultfd.h`: `uffdio_api`, `uffdio_register`, `uffdio_copy`.
const API: Opcode = opcode::read_write::<[u64; 3]>(0xaa, 0x3f);
const REGISTER: Opcode = opcode::read_write::<[u64; 4]>(0xaa, 0x00);
const COPY: Opcode = opcode::read_write::<[u64; 5]>(0xaa, 0x03);

/// Answers `faults` faults in `mapping`, whose first page is at `at` of `file`, in a thread of its own.
pub fn answer(
    mapping: Mapping,
    file: File,
    at: u64,
    faults: u64,
) -> Result<thread::JoinHandle<std::io::Result<()>>, Box<dyn Error>> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: nothing is registered with it yet.
    let uffd = unsafe { rustix::mm::userfaultfd(flags) }?;
    let mut api = [0xaa_u64, 0, 0];
    // SAFETY: the argument is that of this call.
    unsafe { ioctl(&uffd, Updater::<API, _>::new(&mut api)) }?;
    let mut register = [mapping.address(), mapping.pages().bytes(), 1, 0];
    // SAFETY: as above; it is guest memory.
    unsafe { ioctl(&uffd, Updater::<REGISTER, _>::new(&mut register)) }?;
    Ok(thread::spawn(move || {
        serve(&uffd, mapping, &file, at, faults)
    }))
}

fn serve(
    uffd: &OwnedFd,
    mapping: Mapping,
    file: &File,
    at: u64,
    faults: u64,
) -> std::io::Result<()> {
    let mut page = [0; PAGE_SIZE as usize];
    let mut left = faults;
    while left > 0 {
        poll(&mut [PollFd::new(uffd, PollFlags::IN)], None)?;
        let mut message = [0; 32];
        if rustix::io::read(uffd.as_fd(), &mut message) != Ok(message.len()) {
            continue;
        }
        // The address is the third of four words.
        let [.., c, _] = message.as_chunks().0 else {
            continue;
        };
        let address = u64::from_le_bytes(*c) & !(PAGE_SIZE - 1);
        file.read_exact_at(&mut page, at + (address - mapping.address()))?;
        let mut copy = [address, page.as_ptr() as u64, PAGE_SIZE, 0, 0_u64];
        // SAFETY: as above; `page` lives.
        unsafe { ioctl(uffd, Updater::<COPY, _>::new(&mut copy)) }?;
        left -= 1;
    }
    Ok(())
}
