// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits of what the process takes from its host.
//!
//! The address space has no limit, because front ends may bring any amount of guest memory to map. That memory is shared,
//! so the limit on private memory does not count it.

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::process::{getrlimit, set_dumpable_behavior, setrlimit};

/// File descriptors of the process itself: standard streams, signals, metrics and their readers.
const OWN_FILES: u64 = 64;
/// File descriptors of one device: its sockets, 509 memory slots, rings, logs, 32 control connections that may
/// each bring a descriptor or more with a request, and as many again as one message may carry.
const FILES_A_DEVICE: u64 = 1024;
/// Private memory of the process itself: its program, its allocator.
const OWN_MEMORY: u64 = 256 << 20;
/// Private memory of one device: stacks, the bitmap of the largest balloon (512 MiB for the pages of 16 TiB), and that
/// of reported pages (256 MiB).
const MEMORY_A_DEVICE: u64 = 1 << 30;

/// Sets the limits of a process with `devices` devices. A limit that cannot be set is logged: the user may already have
/// lower ones.
pub fn set(devices: usize) {
    let devices = devices as u64;
    lower(
        "file descriptors",
        Resource::Nofile,
        OWN_FILES + FILES_A_DEVICE * devices,
    );
    lower(
        "private memory",
        Resource::Data,
        OWN_MEMORY + MEMORY_A_DEVICE * devices,
    );
    lower("locked memory", Resource::Memlock, 0);
    keep_private();
}

/// Keeps guest memory and keys out of core files, and forbids tracing, which could read them.
pub fn keep_private() {
    lower("core files", Resource::Core, 0);
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("others of this user can trace the process: {error}");
    }
}

/// Sets both limits of `resource`. The soft limit may have to rise for that.
fn lower(what: &str, resource: Resource, limit: u64) {
    let maximum = getrlimit(resource).maximum;
    let limit = match maximum {
        Some(maximum) if maximum < limit => {
            log::warn!("{what} are limited to {maximum}; {limit} may be needed");
            maximum
        }
        _ => limit,
    };
    let both = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    if let Err(error) = setrlimit(resource, both) {
        log::warn!("{what} cannot be limited to {limit}: {error}");
    }
}
