// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's end of the agent's port.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use spec::agent::{Answer, Ask, Deframer, Totals};

use crate::PATIENCE;

/// The connection to a guest's agent.
pub struct AgentPort {
    stream: UnixStream,
    input: Box<Deframer>,
}

impl AgentPort {
    /// Takes the VMM's connection. The agent need not run yet.
    pub fn accept(listener: &UnixListener) -> Result<Self, Box<dyn Error>> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            input: Box::default(),
        })
    }

    /// Waits for the agent's Hello.
    pub fn wait_for_agent(&mut self) -> Result<(), Box<dyn Error>> {
        self.read_until(|answer| matches!(answer, Answer::Hello(_)).then_some(()))
    }

    /// Asks for a map of all memory, reads it, and returns the agent's totals.
    pub fn ask(&mut self, epoch: u64) -> Result<Totals, Box<dyn Error>> {
        let ask = Ask::Map {
            epoch,
            first: epoch == 1,
        };
        self.stream.write_all(&ask.to_frame())?;
        self.read_until(|answer| match answer {
            Answer::End { epoch: of, totals } if of == epoch => Some(totals),
            _ => None,
        })
    }

    /// Reads answers until `wanted` returns a value.
    fn read_until<T>(
        &mut self,
        wanted: impl Fn(Answer<'_>) -> Option<T>,
    ) -> Result<T, Box<dyn Error>> {
        loop {
            while let Some(frame) = self.input.next_frame() {
                if let Some(found) = wanted(Answer::read(&frame)?) {
                    return Ok(found);
                }
            }
            match self.stream.read(self.input.space())? {
                0 => return Err("the VMM has hung up on the agent's port".into()),
                count => self.input.filled(count),
            }
        }
    }
}
