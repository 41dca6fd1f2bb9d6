// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guests' initial ramdisk: busybox, the script that answers a test, the agent, and the balloon driver.

use std::fs;

use lacuna::nested::cpio::Archive;
use reference_vmm::images::LINUX_AGENT;

use crate::qemu_installation::program;

const INIT: &[u8] = include_bytes!("init.sh");
/// The key by which a device recognises the guests' agent. `init.sh` makes it readable for root only.
pub const AGENT_KEY: &[u8] = b"a key that is no secret outside of these tests";

/// The ramdisk with a shell, the agent and `modules`, in load order.
///
/// # Errors
/// A sentence about what is missing.
pub fn with_shell(modules: &[(&str, Vec<u8>)]) -> Result<Vec<u8>, String> {
    let busybox = program("busybox").ok_or("busybox is missing: install busybox-static")?;
    let make = || {
        let mut archive = Archive::new(Vec::new());
        archive.file("/init", INIT)?;
        archive.file("/bin/busybox", &fs::read(&busybox)?)?;
        archive.file("/bin/lacuna-agent", LINUX_AGENT)?;
        archive.file("/agent.key", AGENT_KEY)?;
        if !modules.is_empty() {
            let mut list = String::new();
            for (name, object) in modules {
                archive.file(&format!("/modules/{name}"), object)?;
                list.push_str(&format!("{name}\n"));
            }
            archive.file("/modules/list", list.as_bytes())?;
        }
        archive.finish()
    };
    make().map_err(|error: std::io::Error| format!("making the initial ramdisk: {error}"))
}
