// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtual machine with guest memory, a console, and the socket to which the console's port connects.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use kvm_ioctls::VmFd;
use reference_vmm::MemoryOptions;
use reference_vmm::memory::MachineMemory;
use reference_vmm::mmio::MmioSlot;
use reference_vmm::virtio::console::VirtioConsole;
use tempfile::TempDir;

use crate::driver::Driver;
use crate::shared::machine;
pub use crate::shared::{MIB, eventually};
pub use spec_testing::PATIENCE;

pub const MEMORY: u64 = 16 * MIB;
const SLOT: MmioSlot = MmioSlot {
    gpa: 0xd000_1000,
    gsi: 6,
};

/// A running console on a machine without vCPUs.
pub struct Subject {
    pub device: Arc<VirtioConsole>,
    pub memory: Arc<MachineMemory>,
    pub host: Host,
    _vm: VmFd,
}

impl Subject {
    /// A console for a guest in new memory; `None` without KVM.
    pub fn new() -> Option<Self> {
        let memory = MachineMemory::new(MEMORY, MemoryOptions::default()).unwrap();
        let subject = Self::in_memory(&Arc::new(memory))?;
        subject.device.resume();
        Some(subject)
    }

    /// A stopped console for a guest in `memory`.
    pub fn in_memory(memory: &Arc<MachineMemory>) -> Option<Self> {
        let vm = machine()?;
        let host = Host::new();
        Some(Self {
            device: VirtioConsole::new(&host.path(), memory, &vm, SLOT).unwrap(),
            memory: Arc::clone(memory),
            host,
            _vm: vm,
        })
    }

    /// A driver that has not used the device yet.
    pub fn driver(&self) -> Driver {
        Driver::new(&self.device, &self.memory)
    }

    /// A driver whose port is open at both ends, and the host's end of the port.
    pub fn joined(&mut self) -> (Driver, UnixStream) {
        let mut driver = self.driver();
        driver.bring_up();
        driver.add_port();
        let host = self.host.accept();
        driver.wait_for_host(true);
        driver.open_port(true);
        (driver, host)
    }
}

/// The host's program, which listens on the port's socket.
pub struct Host {
    folder: TempDir,
    listener: Option<UnixListener>,
}

impl Host {
    fn new() -> Self {
        let mut host = Self {
            folder: tempfile::tempdir().unwrap(),
            listener: None,
        };
        host.come();
        host
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("agent")
    }

    /// Listens (again).
    pub fn come(&mut self) {
        self.listener = Some(UnixListener::bind(self.path()).unwrap());
    }

    /// Stops listening.
    pub fn go(&mut self) {
        self.listener = None;
        std::fs::remove_file(self.path()).unwrap();
    }

    /// Whether a connection is waiting.
    pub fn is_called(&self) -> bool {
        let listener = self.listener.as_ref().unwrap();
        listener.set_nonblocking(true).unwrap();
        let called = listener.accept();
        !matches!(called, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The next connection.
    pub fn accept(&self) -> UnixStream {
        let listener = self.listener.as_ref().unwrap();
        listener.set_nonblocking(true).unwrap();
        let host = eventually("a connection", || listener.accept().ok());
        host.0.set_nonblocking(false).unwrap();
        host.0.set_read_timeout(Some(PATIENCE)).unwrap();
        host.0
    }
}

/// Reads exactly `count` bytes.
pub fn read(mut from: &UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// Fills a socket. Returns how many bytes it took.
pub fn fill(mut to: &UnixStream) -> usize {
    to.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(count) = to.write(&[0x5a; 4096]) {
        sent += count;
    }
    sent
}

/// Bytes in which no part looks like another.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}
