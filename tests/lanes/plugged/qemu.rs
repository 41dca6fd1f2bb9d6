// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU 10.2 or newer, whose `vhost-user-test-device-pci` is a front end for any vhost-user device.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use host_migrator::HintSource;
use rustix::process::Signal;
use spec::hint_map::{HintPhase, Tellers};

use super::claims::{MAP_PAGES, claims_under};
use super::device::Device;
use super::guest::Guest;
use super::initramfs::with_shell;
use super::{MEMORY, Vmm, eventually};
use crate::qemu_installation::Installation;

/// A QEMU with the device, and a stock Debian kernel.
#[derive(Clone, Debug)]
pub struct Qemu {
    pub installation: Installation,
    kernel: PathBuf,
    initrd: Vec<u8>,
}

impl Qemu {
    /// QEMU and the kernel. If something is missing, prints a sentence on standard error. The first caller may have to wait
    /// for a download.
    pub fn find() -> Option<Self> {
        static FOUND: OnceLock<Result<Qemu, String>> = OnceLock::new();
        match FOUND.get_or_init(Self::gather) {
            Ok(qemu) => Some(qemu.clone()),
            Err(reason) => {
                spec_testing::skipped(reason);
                None
            }
        }
    }

    fn gather() -> Result<Self, String> {
        let files = lacuna::nested::pci_guest_files().map_err(|error| error.to_string())?;
        let modules = fs::read(&files.initrd).map_err(|error| error.to_string())?;
        let installation = Installation::find_or_fetch()?;
        println!("QEMU {}", installation.version()?);
        Ok(Self {
            installation,
            kernel: files.kernel,
            initrd: [modules, with_shell(&[])?].concat(),
        })
    }

    /// The command that starts a guest with the balloon `device` and additional kernel `arguments`. It has no agent's port.
    pub fn command(&self, device: &Device, arguments: &str) -> Command {
        let initrd = device.folder().join("qemu.cpio");
        fs::write(&initrd, &self.initrd).expect("there is room");
        let mut command = self.installation.command();
        command
            .args(["-accel", "tcg", "-machine", "q35,memory-backend=memory"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-serial", "stdio", "-m", &format!("{}M", MEMORY >> 20)])
            .args([
                "-object",
                &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"),
            ])
            .arg("-chardev")
            .arg(format!(
                "socket,id=balloon,path={}",
                device.socket().display()
            ))
            .args([
                "-device",
                "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,vq_size=1024,config_size=16",
            ])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(initrd)
            .args([
                "-append",
                &format!("console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off {arguments}"),
            ]);
        if device.disk().exists() {
            let disk = device.disk();
            command.args([
                "-drive",
                &format!("file={},format=raw,if=virtio", disk.display()),
            ]);
        }
        command
    }
}

impl Vmm for Qemu {
    fn agent_port(&self) -> &'static str {
        "virtio:org.lacuna.agent.0"
    }

    fn disk(&self) -> &'static str {
        "/dev/vda"
    }

    fn start(&self, device: &Device, arguments: &str) -> Guest {
        let mut command = self.command(device, arguments);
        command
            .args(["-device", "virtio-serial", "-chardev"])
            .arg(format!(
                "socket,id=agent,path={},reconnect-ms=100",
                device.agent_socket().display()
            ))
            .args([
                "-device",
                "virtserialport,chardev=agent,name=org.lacuna.agent.0",
            ]);
        Guest::start(&command)
    }
}

claims_under!(Qemu::find);
// The kernel of User Mode Linux has no page poisoning, and does not reopen a serial line.
claims_under! { Qemu::find:
    claims::poisoned_pages_are_neither_hinted_nor_discarded,
    agent::pages_that_are_zeroed_when_freed_are_reported,
    agent::the_agent_does_not_report_poisoned_pages_either,
    agent::the_agent_comes_back_to_a_device_that_was_restarted,
    agent::the_agent_comes_back_to_a_device_that_was_killed_in_an_epoch,
}

/// When a device disconnects, QEMU 11.1.3 drops its state, and aborts at an assertion when the guest next reads or writes the
/// configuration (`vub_get_config`, `vub_set_config`). In an epoch this happens when the driver has not read a new command id
/// yet; later, when the driver is removed. See `device/README.md`.
#[test]
fn a_device_that_is_killed_in_an_epoch_ends_qemu_by_one_assertion_or_not_at_all() {
    let Some(qemu) = Qemu::find() else {
        return;
    };
    let driver = Tellers {
        driver: true,
        agent: false,
    };
    for (phase, then) in [
        (HintPhase::Requested, "sleep 1"),
        (HintPhase::Running, "sleep 1"),
        (HintPhase::Finished, "rmmod virtio_balloon"),
    ] {
        let mut device = Device::start(&[]);
        let mut guest = qemu.run(&mut device, "");
        let mut migrator = device.migrator_for(MAP_PAGES, driver);
        migrator.open(1).expect("the guest is asked");
        eventually("the guest's hints", || {
            let reached = migrator.phase();
            // A phase that has passed before it was seen counts.
            (reached == phase || reached == HintPhase::Finished).then_some(())
        });
        device.kill();
        let end = guest.end_by(then);
        println!("killed in phase {phase:?}, then `{then}`: {end:?}");
        if let Some((status, words)) = end {
            assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{words}");
            assert!(
                words.contains("Assertion `hdev->vhost_ops' failed"),
                "{words}"
            );
        }
    }
}
