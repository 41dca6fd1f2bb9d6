// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts the agent, if the machine has a port for it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command};

/// The agent's path in the initial ramdisk.
const PROGRAM: &str = "/bin/lacuna-agent";
/// Has a folder for each virtio device. The file `device` in it has the device id in hexadecimal.
const DEVICES: &str = "/sys/bus/virtio/devices";
const CONSOLE: &str = "0x0003";

/// Starts the agent if the machine has a virtio console. The agent itself waits for its port and the host.
pub fn start() -> io::Result<Option<Child>> {
    if !Path::new(PROGRAM).exists() || !has_console()? {
        return Ok(None);
    }
    Command::new(PROGRAM).spawn().map(Some)
}

fn has_console() -> io::Result<bool> {
    for device in fs::read_dir(DEVICES)? {
        let id = fs::read_to_string(device?.path().join("device"))?;
        if id.trim() == CONSOLE {
            return Ok(true);
        }
    }
    Ok(false)
}
