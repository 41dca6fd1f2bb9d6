// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent, where the machine has a port for it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command};

/// The agent, if the initial ramdisk has it.
const PROGRAM: &str = "/bin/lacuna-agent";
/// One folder a virtio device; the file `device` in it holds the device's number in hexadecimal.
const DEVICES: &str = "/sys/bus/virtio/devices";
const CONSOLE: &str = "0x0003";

/// Starts the agent if the machine has a virtio console. It waits for its port, and for the host, by itself.
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
