// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU with a vsock whose host end is a unix socket for each port, as that of Firecracker and of Cloud Hypervisor:
//! `vhost-device-vsock` of rust-vmm. The guest's agent connects to the host as it would by any vsock.

use std::path::PathBuf;

use super::claims::claims_under;
use super::device::Device;
use super::guest::Guest;
use super::qemu::Qemu;
use super::{Vmm, eventually};

/// Debian's package and the program in it.
const PROGRAM: &str = "vhost-device-vsock";

/// QEMU, and the program that gives it a vsock.
#[derive(Debug)]
struct WithVsock {
    qemu: Qemu,
    program: PathBuf,
}

impl WithVsock {
    /// The programs, or a sentence on standard output about what is missing.
    fn find() -> Option<Self> {
        let qemu = Qemu::find()?;
        let program = qemu.installation.program().with_file_name(PROGRAM);
        if !program.is_file() {
            println!(
                "skipped: {} is missing: install {PROGRAM}",
                program.display()
            );
            return None;
        }
        Some(Self { qemu, program })
    }
}

impl Vmm for WithVsock {
    /// The host's context id is 2. Every process of the guest could connect to it.
    fn agent_port(&self) -> &'static str {
        "vsock:2:1024 --key /agent.key"
    }

    fn device(&self) -> Device {
        Device::start_with_key()
    }

    fn disk(&self) -> &'static str {
        self.qemu.disk()
    }

    fn start(&self, device: &Device, arguments: &str) -> Guest {
        let socket = device.folder().join("vsock");
        let servant = self
            .qemu
            .installation
            .command_of(&self.program)
            .args(["--guest-cid", "3", "--socket"])
            .arg(&socket)
            .arg("--uds-path")
            .arg(device.hybrid_vsock())
            .spawn()
            .expect("the vsock device starts");
        eventually("the vsock device's socket", || {
            socket.exists().then_some(())
        });
        let mut command = self.qemu.command(device, arguments);
        command
            .arg("-chardev")
            .arg(format!("socket,id=vsock,path={}", socket.display()))
            .args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        Guest::start(&command).served_by(servant)
    }
}

/// Any process of the guest can connect as these agents do.
#[test]
fn an_agent_without_the_key_is_ignored() {
    let Some(vmm) = WithVsock::find() else {
        return;
    };
    let mut device = vmm.device();
    let mut guest = vmm.run(&mut device, "");
    guest.run("head -c 32 /dev/urandom > /other.key && chmod 600 /other.key");
    for (key, reason) in [
        ("", "accepts only an agent with its key"),
        ("--key /other.key", "hung up after this agent's proof"),
    ] {
        guest.start_agent("vsock:2:1024", key);
        let log = eventually("a message of the agent", || {
            let log = guest.run("cat /tmp/agent.log");
            log.contains("waiting for the host").then_some(log)
        });
        assert!(log.contains(reason), "{log}");
        assert!(!log.contains("connected to"), "{log}");
        guest.stop_agent();
    }
    device.check();
}

claims_under! { WithVsock::find:
    agent::the_agent_reports_every_free_page_and_the_driver_whole_blocks,
    agent::the_agent_comes_back_to_a_device_that_was_restarted,
    agent::the_agent_comes_back_to_a_device_that_was_killed_in_an_epoch,
}
