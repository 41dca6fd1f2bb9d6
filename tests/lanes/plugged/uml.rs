// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User Mode Linux, as Debian has it: a Linux kernel that is a process, with a vhost-user front end of its own.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use super::claims::claims_under;
use super::device::Device;
use super::guest::Guest;
use super::initramfs::with_shell;
use super::{MEMORY, Vmm};
use crate::qemu_installation::program;

/// Where the package keeps the kernel's modules, a folder for each version.
const MODULES: &str = "/usr/lib/uml/modules";
/// The balloon driver in such a folder.
const DRIVER: &str = "kernel/drivers/virtio/virtio_balloon.ko";
/// The source of a library that lets it run on processors with AMX.
const XSTATE_SHIM: &str = include_str!("uml-xstate.c");

/// User Mode Linux on this machine.
#[derive(Debug)]
struct Uml {
    kernel: PathBuf,
    initrd: Vec<u8>,
}

impl Uml {
    /// User Mode Linux, if it is installed. Otherwise prints what is missing on standard error.
    fn find() -> Option<Self> {
        let found = Self::gather();
        if let Err(reason) = &found {
            spec_testing::skipped(reason);
        }
        found.ok()
    }

    fn gather() -> Result<Self, String> {
        let missing = "User Mode Linux is missing: install user-mode-linux";
        let kernel = program("linux.uml").ok_or(missing)?;
        let driver = fs::read_dir(MODULES)
            .map_err(|_| missing)?
            .filter_map(|entry| Some(entry.ok()?.path().join(DRIVER)))
            .find_map(|path| fs::read(path).ok())
            .ok_or_else(|| format!("there is no {DRIVER} in {MODULES}"))?;
        let initrd = with_shell(&[("virtio_balloon.ko", driver)])?;
        Ok(Self { kernel, initrd })
    }
}

impl Vmm for Uml {
    /// Its front end acknowledges features without `VHOST_USER_F_PROTOCOL_FEATURES` and then never stops or disables a
    /// ring. So the rings of a removed driver are in memory that the guest uses for something else, and a device that
    /// returned a statistics buffer would write there.
    fn tells_of_removal(&self) -> bool {
        false
    }

    /// Its first serial line.
    fn agent_port(&self) -> &'static str {
        "/dev/ttyS0"
    }

    fn disk(&self) -> &'static str {
        "/dev/ubda"
    }

    fn start(&self, device: &Device, arguments: &str) -> Guest {
        let folder = device.folder();
        let initrd = folder.join("uml.cpio");
        fs::write(&initrd, &self.initrd).expect("there is room");
        // Its memory begins after its heap, at a random place in a gigabyte, and its page flags (/proc/kpageflags) end
        // too early by that offset.
        let mut command = Command::new("setarch");
        command
            .arg("--addr-no-randomize")
            .arg(&self.kernel)
            .env("HOME", folder)
            .arg(format!("mem={MEMORY}"))
            .arg(format!("initrd={}", initrd.display()))
            .args(["rdinit=/init", "con=null", "con0=fd:0,fd:1", "quiet"])
            .arg(format!("virtio_uml.device={}:5", device.socket().display()))
            .args(arguments.split_whitespace());
        if device.disk().exists() {
            command.arg(format!("ubd0={}", device.disk().display()));
        }
        let agent = UnixStream::connect(device.agent_socket()).expect("the device listens");
        fcntl_setfd(&agent, FdFlags::empty()).expect("it is open");
        command.arg(format!("ssl0=fd:{}", agent.as_raw_fd()));
        if has_amx() {
            command.env("LD_PRELOAD", xstate_shim(folder));
        }
        Guest::start(&command)
    }
}

/// Whether the processor's state is larger than User Mode Linux knows.
fn has_amx() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu.split_ascii_whitespace().any(|flag| flag == "amx_tile")
}

/// Compiles the shim in `folder`.
fn xstate_shim(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("xstate.c"), folder.join("xstate.so"));
    fs::write(&source, XSTATE_SHIM).expect("there is room");
    let compiled = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(compiled.is_ok_and(|status| status.success()), "cc fails");
    library
}

claims_under!(Uml::find);
