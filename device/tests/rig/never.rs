// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that never answers: a userfaultfd holds every access to a page that nobody has written.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The name of the memory files that [`hold`] holds in the process that maps them.
pub const NAME: &str = "never-answers";

const USER_MODE_ONLY: libc::c_int = 1;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;

/// Holds every access of this process to a missing page of the next memory file with [`NAME`] that it maps. Then makes
/// a file `held` in `folder`, and a file `touched` once an access hangs.
///
/// # Errors
/// If this user may not use userfaultfd.
pub fn hold(folder: &Path) -> io::Result<()> {
    let faults = userfaultfd()?;
    let folder = folder.to_owned();
    thread::spawn(move || {
        let (start, length) = loop {
            match mapping() {
                Some(found) => break found,
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        let mut register = [start, length, MODE_MISSING, 0];
        // SAFETY: the argument is a `struct uffdio_register`.
        let result =
            unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        File::create(folder.join("held")).unwrap();
        let mut message = [0; 32];
        rustix::io::read(&faults, &mut message).unwrap();
        File::create(folder.join("touched")).unwrap();
        // Never closed, because that would let the access go on.
        std::mem::forget(faults);
    });
    Ok(())
}

fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: takes only flags.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for this call.
    let faults = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    let mut api = [API, 0, 0];
    // SAFETY: the argument is a `struct uffdio_api`.
    match unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) } {
        0 => Ok(faults),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Start and length of the mapping of such a file.
fn mapping() -> Option<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.contains(NAME))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)? - number(start)?))
}
