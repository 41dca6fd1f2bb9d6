// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client of a control socket.

use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::wire::connect_unix;
use serde::de::DeserializeOwned;

use super::{Answer, Command, descriptors};

/// How long an answer may take. Most commands are answered at once, whatever the migration is doing; `cancel` is
/// answered when the guest is out of the migration.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the socket of a starting machine may exist before the machine listens.
const STARTING: Duration = Duration::from_millis(200);

/// A command that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no machine answers at {path}: {source}", path = .path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine went away or does not answer.
    #[error("the machine at {path} does not answer: {source}", path = .path.display())]
    Io {
        /// The control socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This version does not understand the answer.
    #[error("the machine's answer makes no sense: {0}")]
    Answer(#[from] serde_json::Error),
    /// The machine refused.
    #[error("{0}")]
    Refused(String),
}

/// Connects to `path`. The file of a socket exists a moment before the socket listens.
fn reach(path: &Path) -> io::Result<UnixStream> {
    let end = Instant::now() + STARTING;
    loop {
        match connect_unix(path, ANSWER_TIMEOUT) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < end =>
            {
                thread::sleep(STARTING / 20);
            }
            result => return result,
        }
    }
}

/// A connection to a machine's control socket.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connect = || {
            let stream = reach(path)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    /// From now on answers may take as long as they take: for a command that writes to a disk.
    ///
    /// # Errors
    /// [`ClientError::Io`] if the kernel refuses.
    pub fn without_deadline(self) -> Result<Self, ClientError> {
        let set = self.stream.get_ref().set_read_timeout(None);
        set.map_err(|source| ClientError::Io {
            path: self.path.clone(),
            source,
        })?;
        Ok(self)
    }

    /// Sends `command` and reads its answer.
    ///
    /// # Errors
    /// [`ClientError`] if the machine refuses, goes away, or does not answer in time.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &Command) -> Result<T, ClientError> {
        self.ask_with(command, &[])
    }

    /// As [`Client::ask`], and gives the machine copies of `descriptors`.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn ask_with<T: DeserializeOwned>(
        &mut self,
        command: &Command,
        descriptors: &[OwnedFd],
    ) -> Result<T, ClientError> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        let answer = self
            .exchange(&line, descriptors)
            .map_err(|source| ClientError::Io {
                path: self.path.clone(),
                source,
            })?;
        match serde_json::from_str(&answer)? {
            Answer::Return(value) => Ok(serde_json::from_value(value)?),
            Answer::Error { desc } => Err(ClientError::Refused(desc)),
        }
    }

    /// Sends `command` and drops the answer's value.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn tell(&mut self, command: &Command) -> Result<(), ClientError> {
        self.ask::<serde_json::Value>(command).map(|_| ())
    }

    /// Waits until the machine's process has ended, for at most `time`.
    ///
    /// # Errors
    /// [`ClientError::Io`] if it still runs after that.
    pub fn wait_for_end(mut self, time: Duration) -> Result<(), ClientError> {
        let mut wait = || {
            self.stream.get_ref().set_read_timeout(Some(time))?;
            io::copy(&mut self.stream, &mut io::sink())
        };
        match wait().map_err(|error| error.kind()) {
            // A process that ends with unread data resets its connections.
            Ok(_) | Err(io::ErrorKind::ConnectionReset) => Ok(()),
            Err(kind) => Err(ClientError::Io {
                path: self.path,
                source: kind.into(),
            }),
        }
    }

    fn exchange(&mut self, line: &str, descriptors: &[OwnedFd]) -> io::Result<String> {
        descriptors::send(self.stream.get_mut(), line.as_bytes(), descriptors)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }
}
