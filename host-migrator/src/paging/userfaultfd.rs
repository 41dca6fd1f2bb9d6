// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's userfaultfd: page faults of a mapping are messages, and the answers are pages.
//!
//! All system calls of it are here. The structures and numbers are those of `linux/userfaultfd.h`.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

use crate::memory::mapping::Mapping;

const DEVICE: &str = "/dev/userfaultfd";
const API: u64 = 0xaa;
const GROUP: u8 = 0xaa;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;

const NEW: Opcode = opcode::none(GROUP, 0x00);
const HELLO: Opcode = opcode::read_write::<ApiArgument>(GROUP, 0x3f);
const REGISTER: Opcode = opcode::read_write::<RegisterArgument>(GROUP, 0x00);
const WAKE: Opcode = opcode::read::<RangeArgument>(GROUP, 0x02);
const COPY: Opcode = opcode::read_write::<CopyArgument>(GROUP, 0x03);
const ZEROPAGE: Opcode = opcode::read_write::<ZeroArgument>(GROUP, 0x04);

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RangeArgument {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArgument {
    range: RangeArgument,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArgument {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroArgument {
    range: RangeArgument,
    mode: u64,
    zeropage: i64,
}

/// `struct uffd_msg`: the event, and its three numbers.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawMessage {
    event: u8,
    reserved: [u8; 7],
    arguments: [u64; 3],
}

/// What has happened to a registered mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The process discards the bytes from the first address to the second, as soon as this message was read.
    Removed(u64, u64),
    /// Something that was not asked for.
    Other(u8),
}

/// Page faults cannot be handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserfaultfdError {
    /// The kernel refuses it to this user, or does not have it.
    #[error(
        "this user may not handle page faults (userfaultfd), which a lazy restore needs: {DEVICE}: {device}; the system call: \
         {call}. Give the user access to {DEVICE}, or set the sysctl vm.unprivileged_userfaultfd to 1"
    )]
    Refused {
        /// What opening the device said.
        device: io::Error,
        /// What the system call said.
        call: io::Error,
    },
    /// The kernel cannot do it for memory files.
    #[error("this kernel cannot handle page faults in memory files (userfaultfd, Linux 4.11): {0}")]
    Features(#[source] io::Error),
    /// A mapping cannot be registered.
    #[error("page faults of {len} bytes at {address:#x} cannot be handled: {source}")]
    Register {
        /// Where the mapping is.
        address: u64,
        /// Its bytes.
        len: u64,
        /// Why.
        source: io::Error,
    },
}

/// A userfaultfd: this process's own, or one that another process has sent.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
    tells_removals: bool,
    is_own: bool,
}

/// How many bytes were placed, and what kept the kernel from the next one.
pub(super) type Done = (u64, Option<Errno>);

impl Userfaultfd {
    /// A new one for mappings of this process. With `tells_removals` a thread that discards pages (`MADV_REMOVE`,
    /// `MADV_DONTNEED`) waits until that was read here; use it only if somebody does so.
    ///
    /// # Errors
    /// [`UserfaultfdError`] if the kernel refuses it or is too old.
    pub fn open(tells_removals: bool) -> Result<Self, UserfaultfdError> {
        let fd = match from_device() {
            Ok(fd) => fd,
            Err(device) => {
                from_call().map_err(|call| UserfaultfdError::Refused { device, call })?
            }
        };
        let mut hello = ApiArgument {
            api: API,
            features: FEATURE_MISSING_SHMEM,
            ioctls: 0,
        };
        if tells_removals {
            hello.features |= FEATURE_EVENT_REMOVE;
        }
        // SAFETY: the argument is that of this call.
        let agreed = unsafe { ioctl(&fd, Updater::<HELLO, _>::new(&mut hello)) };
        agreed.map_err(|error| UserfaultfdError::Features(error.into()))?;
        Ok(Self {
            fd,
            tells_removals,
            is_own: true,
        })
    }

    /// One that another process has made, has registered its mappings with, and has sent here. It must be non-blocking.
    /// `tells_removals`: that process asked for `UFFD_FEATURE_EVENT_REMOVE`.
    pub fn of_another_process(fd: OwnedFd, tells_removals: bool) -> Self {
        Self {
            fd,
            tells_removals,
            is_own: false,
        }
    }

    pub(super) fn tells_removals(&self) -> bool {
        self.tells_removals
    }

    /// Whether the mappings are this process's.
    pub(super) fn is_own(&self) -> bool {
        self.is_own
    }

    /// From now on faults in the bytes of `mapping` come here, if no page is there.
    pub(super) fn register(&self, mapping: &Mapping) -> Result<(), UserfaultfdError> {
        let (address, len) = (mapping.address(), mapping.pages().bytes());
        let mut argument = RegisterArgument {
            range: RangeArgument {
                start: address,
                len,
            },
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: the argument is that of this call. The memory is a guest's, so nobody relies on what it contains.
        let done = unsafe { ioctl(&self.fd, Updater::<REGISTER, _>::new(&mut argument)) };
        done.map_err(|error| UserfaultfdError::Register {
            address,
            len,
            source: error.into(),
        })
    }

    /// Reads messages without waiting, as many as `N` at most, and adds them to `messages`.
    pub(super) fn read<const N: usize>(&self, messages: &mut Vec<Message>) -> io::Result<()> {
        let mut raw = [MaybeUninit::<RawMessage>::uninit(); N];
        let bytes = size_of_val(&raw);
        // SAFETY: these are the bytes of `raw`, which may be written.
        let buffer = unsafe {
            std::slice::from_raw_parts_mut(raw.as_mut_ptr().cast::<MaybeUninit<u8>>(), bytes)
        };
        let read = match rustix::io::read(&self.fd, buffer) {
            Ok((read, _)) => read.len(),
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for message in &raw[..read / size_of::<RawMessage>()] {
            // SAFETY: the kernel has written the whole message, and every value of its bytes is one.
            let message = unsafe { message.assume_init() };
            messages.push(match (message.event, message.arguments) {
                (EVENT_PAGEFAULT, [_, address, _]) => Message::Fault(address),
                (EVENT_REMOVE, [start, end, _]) => Message::Removed(start, end),
                (event, _) => Message::Other(event),
            });
        }
        Ok(())
    }

    /// Fills the missing pages from address `to` on with `content`, and wakes the threads that wait for them. Stops at a page
    /// that is there.
    pub(super) fn copy(&self, to: u64, content: &[u8]) -> Done {
        let mut argument = CopyArgument {
            dst: to,
            src: content.as_ptr() as u64,
            len: content.len() as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: the argument is that of this call. The kernel reads `content`, and writes only pages that are missing in a
        // registered mapping.
        let result = unsafe { ioctl(&self.fd, Updater::<COPY, _>::new(&mut argument)) };
        (u64::try_from(argument.copy).unwrap_or(0), result.err())
    }

    /// Fills the missing pages of `range` with zeros, and wakes the threads that wait for them. Stops at a page that is there.
    pub(super) fn zero(&self, range: Range<u64>) -> Done {
        let mut argument = ZeroArgument {
            range: RangeArgument {
                start: range.start,
                len: range.end - range.start,
            },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: as for `copy`.
        let result = unsafe { ioctl(&self.fd, Updater::<ZEROPAGE, _>::new(&mut argument)) };
        (u64::try_from(argument.zeropage).unwrap_or(0), result.err())
    }

    /// Wakes the threads that wait for a page of `range`: they look for it again.
    pub(super) fn wake(&self, range: Range<u64>) -> io::Result<()> {
        let range = RangeArgument {
            start: range.start,
            len: range.end - range.start,
        };
        // SAFETY: the argument is that of this call.
        Ok(unsafe { ioctl(&self.fd, Setter::<WAKE, _>::new(range)) }?)
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The call of the device that makes a userfaultfd. Its argument is the flags, and its result the descriptor.
struct New(OFlags);

// SAFETY: the argument is a number, the result a new descriptor, and no memory is touched.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NEW
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.0.bits() as usize)
    }

    unsafe fn output_from_ptr(
        fd: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call has succeeded, so this descriptor is new and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn from_device() -> io::Result<OwnedFd> {
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: see `New`.
    Ok(unsafe { ioctl(&device, New(OFlags::CLOEXEC | OFlags::NONBLOCK)) }?)
}

fn from_call() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: nothing is registered with it yet.
    Ok(unsafe { rustix::mm::userfaultfd(flags) }?)
}
