// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection to the agent's socket, and what has come over it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use spec::agent::{Deframer, Frame};

/// A connection. It is hung up on when dropped, unless its port is kept by somebody.
#[derive(Debug)]
pub struct Connection {
    port: Arc<UnixStream>,
    input: Box<Deframer>,
}

impl Connection {
    /// Nothing has come over `port` yet.
    pub fn new(port: UnixStream) -> Self {
        Self {
            port: Arc::new(port),
            input: Box::default(),
        }
    }

    /// The socket, to be written to.
    pub fn port(&self) -> &Arc<UnixStream> {
        &self.port
    }

    /// Reads what there is: how many bytes, 0 if the other end has hung up. To be called when the socket is readable
    /// and [`Connection::next_frame`] has returned `None`.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub fn fill(&mut self) -> io::Result<usize> {
        loop {
            match (&*self.port).read(self.input.space()) {
                Ok(count) => {
                    self.input.filled(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It went without reading what it was asked: an end like any other.
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
