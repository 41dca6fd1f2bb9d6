// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's counters of a vCPU (KVM_GET_STATS_FD, Linux 5.14 or later).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_stats_header;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

use self::number::KVM_GET_STATS_FD;

/// The request number, from `linux/kvm.h`.
mod number {
    use kvm_bindings::KVMIO;
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
}

/// Bytes of a counter's description without its name.
const DESCRIPTION_BYTES: usize = 16;
/// The most that a description may have, so that a broken file does not ask for more.
const MOST_NAME_BYTES: u32 = 4096;
const MOST_COUNTERS: u32 = 4096;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Where the page faults that KVM has resolved are counted.
    faults: u64,
}

impl KvmStats {
    /// The counters of `vcpu`.
    ///
    /// # Errors
    /// The kernel's, also if it has no such counters.
    pub fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the call takes no argument, and returns a new file descriptor or an error.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let file = unsafe { File::from_raw_fd(fd) };
        let faults = place_of(&file, b"pf_fixed")?;
        Ok(Self { file, faults })
    }

    /// How many page faults of this vCPU KVM has resolved: first touches of memory, and writes to pages that the dirty log
    /// protects.
    ///
    /// # Errors
    /// The kernel's.
    pub fn faults(&self) -> io::Result<u64> {
        word(&self.file, self.faults)
    }
}

/// Where the counter `wanted` lies in `file`.
fn place_of(file: &File, wanted: &[u8]) -> io::Result<u64> {
    let mut header = [0; size_of::<kvm_stats_header>()];
    file.read_exact_at(&mut header, 0)?;
    // flags, name_size, num_desc, id_offset, desc_offset, data_offset.
    let words: Vec<u32> = (header.as_chunks().0.iter())
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect();
    let (Some(&name), Some(&count), Some(&at), Some(&data)) =
        (words.get(1), words.get(2), words.get(4), words.get(5))
    else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let (name, count) = (name.min(MOST_NAME_BYTES), count.min(MOST_COUNTERS));
    let mut description = vec![0; DESCRIPTION_BYTES + name as usize];
    for index in 0..u64::from(count) {
        let place = u64::from(at) + index * description.len() as u64;
        file.read_exact_at(&mut description, place)?;
        let (fixed, name) = description.split_at(DESCRIPTION_BYTES);
        if name.split(|byte| *byte == 0).next() == Some(wanted) {
            // flags, exponent (2 bytes), size (2 bytes), offset, bucket_size.
            let offset = fixed[8..12].as_chunks().0.first();
            let offset = offset.map_or(0, |bytes| u32::from_le_bytes(*bytes));
            return Ok(u64::from(data) + u64::from(offset));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn word(file: &File, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}
