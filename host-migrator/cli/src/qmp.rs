// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of QMP, QEMU's machine protocol: JSON lines over a unix socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long QEMU may take for an answer: far more than it does. One whose main loop hangs never answers.
const PATIENCE: Duration = Duration::from_secs(120);

/// QEMU refuses a command or does not answer it.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection failed, or QEMU has closed it.
    #[error("QEMU does not answer {command}: {source}")]
    Io {
        /// What was asked.
        command: String,
        /// Why there is no answer.
        source: io::Error,
    },
    /// The answer is no JSON.
    #[error("QEMU's answer to {command} is not JSON: {source}")]
    Json {
        /// What was asked.
        command: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The answer is an error.
    #[error("QEMU refuses {command}: {error}")]
    Refused {
        /// What was asked.
        command: String,
        /// QEMU's reason.
        error: String,
    },
}

/// A connection that is ready for commands.
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to a QEMU that listens at `path`.
    ///
    /// # Errors
    /// [`QmpError`] if there is none.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let open = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut stream = BufReader::new(stream);
            stream.read_line(&mut String::new())?;
            Ok(stream)
        };
        let stream = open().map_err(|source| QmpError::Io {
            command: "a connection".into(),
            source,
        })?;
        let mut qmp = Self(stream);
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The result of `command`. Events in between are ignored.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let request = json!({ "execute": command, "arguments": arguments });
        let failed = |source| QmpError::Io {
            command: command.into(),
            source,
        };
        writeln!(self.0.get_mut(), "{request}").map_err(failed)?;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).map_err(failed)? == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut answer: Value =
                serde_json::from_str(&line).map_err(|source| QmpError::Json {
                    command: command.into(),
                    source,
                })?;
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused {
                    command: command.into(),
                    error: error["desc"]
                        .as_str()
                        .map_or_else(|| error.to_string(), str::to_owned),
                });
            }
        }
    }
}
