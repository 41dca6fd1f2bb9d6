// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of QMP, QEMU's machine protocol: JSON lines over a unix socket.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long QEMU may take for an answer: far more than it does. One whose main loop hangs never answers.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection that is ready for commands.
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to a QEMU that listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, Box<dyn Error>> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut greeting = String::new();
        stream.read_line(&mut greeting)?;
        let mut qmp = Self(stream);
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The result of `command`. Events in between are ignored.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Box<dyn Error>> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}")?;
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line);
            if read.map_err(|error| format!("QEMU does not answer {command}: {error}"))? == 0 {
                return Err("QEMU has closed QMP".into());
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
        }
    }
}
