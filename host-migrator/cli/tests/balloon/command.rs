// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs `lacuna balloon` on a device.

use std::process::{Child, Command, Output, Stdio};

use crate::rig::guest::Daemon;

/// How a command ended, and its output.
#[derive(Debug)]
pub struct Said {
    pub success: bool,
    pub output: String,
    pub errors: String,
}

impl Said {
    /// Its output as JSON.
    pub fn json(&self) -> serde_json::Value {
        assert!(self.success, "{self:?}");
        serde_json::from_str(&self.output).unwrap()
    }

    /// Its error message.
    pub fn complaint(&self) -> &str {
        assert!(!self.success, "{self:?}");
        self.errors.strip_prefix("lacuna: ").unwrap().trim_end()
    }
}

/// A command that is running.
pub struct Running(Child);

impl Running {
    pub fn wait(self) -> Said {
        Said::from(self.0.wait_with_output().unwrap())
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            output: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Starts `lacuna balloon` with `args` for the device of `daemon`.
pub fn start(daemon: &Daemon, args: &[&str]) -> Running {
    let child = Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .arg("balloon")
        .args(args)
        .arg("--control-socket")
        .arg(daemon.control())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running(child)
}

/// Runs such a command to its end.
pub fn run(daemon: &Daemon, args: &[&str]) -> Said {
    start(daemon, args).wait()
}

/// A device that can be connected to.
pub fn device() -> Daemon {
    let daemon = Daemon::start(&[]);
    drop(crate::rig::person::Person::connect(&daemon.control()));
    daemon
}
