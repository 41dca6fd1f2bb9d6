// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processor time and memory, as the kernel counts them.

use std::fs;
use std::io;
use std::path::Path;

use crate::{MIB, memory_files};

/// The costs so far.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Processor time of QEMU's main thread and of the device's process.
    pub host_ms: f64,
    /// Processor time of QEMU's other threads: the guest's processor.
    pub guest_ms: f64,
    /// Host memory that the guest's memory takes.
    pub memory_mib: f64,
}

impl Costs {
    /// Reads them. `qemu` and `device` are process ids.
    pub fn now(qemu: u32, device: Option<u32>) -> io::Result<Self> {
        let all = process_ms(qemu)?;
        let main = thread_ms(&Path::new("/proc").join(format!("{qemu}/task/{qemu}")))?;
        let device = device.map_or(Ok(0.0), process_ms)?;
        Ok(Self {
            host_ms: main + device,
            guest_ms: all - main,
            memory_mib: memory_files::bytes_taken(qemu)? as f64 / MIB as f64,
        })
    }
}

fn process_ms(pid: u32) -> io::Result<f64> {
    fs::read_dir(format!("/proc/{pid}/task"))?
        .map(|thread| thread_ms(&thread?.path()))
        .sum()
}

/// The first number of `schedstat`: nanoseconds on a processor.
fn thread_ms(thread: &Path) -> io::Result<f64> {
    let text = fs::read_to_string(thread.join("schedstat"))?;
    let first = text.split_ascii_whitespace().next();
    let nanoseconds: f64 = first
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::Error::other("this kernel does not count processor time"))?;
    Ok(nanoseconds / 1e6)
}
