// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection to the agent's socket, and the frames that arrive on it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use spec::agent::{Deframer, Frame};

/// A connection. Dropping it closes the socket, unless somebody else keeps its port.
#[derive(Debug)]
pub struct Connection {
    port: Arc<UnixStream>,
    input: Box<Deframer>,
}

impl Connection {
    /// A new connection over `port`.
    pub fn new(port: UnixStream) -> Self {
        Self {
            port: Arc::new(port),
            input: Box::default(),
        }
    }

    /// The socket, for writing.
    pub fn port(&self) -> &Arc<UnixStream> {
        &self.port
    }

    /// Reads what has arrived. Returns the number of bytes, 0 if the other end has hung up. Call this when the socket
    /// is readable and [`Connection::next_frame`] has returned `None`.
    ///
    /// # Errors
    /// The socket's.
    pub fn fill(&mut self) -> io::Result<usize> {
        loop {
            match (&*self.port).read(self.input.space()) {
                Ok(count) => {
                    self.input.filled(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The other end closed without reading our request: this is a normal end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole frame of what was read.
    pub fn next_frame(&mut self) -> Option<Frame<'_>> {
        self.input.next_frame()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}
