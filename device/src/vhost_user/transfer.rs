// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pipe through which the device's state migrates.
//!
//! The front end reads or writes its end after the device has answered, at its own pace, or never. So the front end's
//! session waits for the pipe beside everything else. Only [`Transfer::finish`] waits for the pipe alone, for a short
//! time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl};

use crate::balloon::device_state::MAX_BYTES;
use crate::memory::lent_file::file_type;
use crate::sockets;

/// How long [`Transfer::finish`] waits for the front end to read or write.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes written at once: what a pipe usually holds.
const PIECE: usize = 0x10000;

/// A state that is being saved or loaded.
#[derive(Debug)]
pub struct Transfer {
    /// Closed when the transfer has ended.
    pipe: Option<File>,
    direction: Direction,
    result: io::Result<()>,
}

#[derive(Debug)]
enum Direction {
    /// The bytes that are still to be written.
    Save(Vec<u8>),
    /// The bytes that have arrived.
    Load(Vec<u8>),
}

impl Transfer {
    /// Starts to write `state` to `pipe`, and closes it after that.
    ///
    /// # Errors
    /// If `pipe` is neither a pipe nor a socket.
    pub fn save(pipe: File, state: Vec<u8>) -> io::Result<Self> {
        let mut transfer = Self::start(pipe, Direction::Save(state))?;
        // Most states fit into a pipe at once.
        transfer.go_on();
        Ok(transfer)
    }

    /// Starts to read a state from `pipe` up to its end.
    ///
    /// # Errors
    /// If `pipe` is neither a pipe nor a socket.
    pub fn load(pipe: File) -> io::Result<Self> {
        Self::start(pipe, Direction::Load(Vec::new()))
    }

    fn start(pipe: File, direction: Direction) -> io::Result<Self> {
        // Other kinds of files may block, or hang for ever, whatever their flags say.
        let kinds = [FileType::Fifo, FileType::Socket];
        if !file_type(&pipe).is_ok_and(|kind| kinds.contains(&kind)) {
            let text = "the state must go through a pipe or a socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let flags = fcntl_getfl(&pipe)?;
        fcntl_setfl(&pipe, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            pipe: Some(pipe),
            direction,
            result: Ok(()),
        })
    }

    /// The event to wait for before [`Transfer::go_on`], unless the transfer has ended.
    pub fn event(&self) -> Option<PollFd<'_>> {
        let flags = match self.direction {
            Direction::Save(_) => PollFlags::OUT,
            Direction::Load(_) => PollFlags::IN,
        };
        Some(PollFd::new(self.pipe.as_ref()?, flags))
    }

    /// Writes or reads as much as is possible without waiting.
    pub fn go_on(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return;
        };
        let ended = match &mut self.direction {
            Direction::Save(rest) => write_piece(pipe, rest),
            Direction::Load(bytes) => read_piece(pipe, bytes),
        };
        match ended {
            Ok(false) => {}
            Ok(true) => self.pipe = None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                self.pipe = None;
                self.result = Err(error);
            }
        }
    }

    /// Waits for the end of the transfer. Returns the bytes of a state that was loaded.
    ///
    /// # Errors
    /// What went wrong, or [`io::ErrorKind::TimedOut`] if the front end does not read or write.
    pub fn finish(mut self) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(event) = self.event() {
            sockets::wait_for(&mut [event], Some(deadline))?;
            self.go_on();
        }
        self.result.map(|()| match self.direction {
            Direction::Save(_) => None,
            Direction::Load(bytes) => Some(bytes),
        })
    }
}

/// Writes a piece of `rest`. Returns whether nothing is left.
fn write_piece(pipe: &mut File, rest: &mut Vec<u8>) -> io::Result<bool> {
    let written = pipe.write(&rest[..rest.len().min(PIECE)])?;
    rest.drain(..written);
    Ok(rest.is_empty())
}

/// Appends a piece to `bytes`. Returns whether the pipe has ended. More bytes than a state can have are an error.
fn read_piece(pipe: &mut File, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let had = bytes.len();
    bytes.resize(had + PIECE, 0);
    let read = pipe.read(&mut bytes[had..]);
    bytes.truncate(had + read.as_ref().copied().unwrap_or(0));
    let read = read?;
    if bytes.len() > MAX_BYTES {
        let text = "the state is longer than any balloon's";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(read == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    #[test]
    fn a_state_larger_than_a_pipe_goes_through_it_whole() {
        let (reader, writer) = pipe();
        let state: Vec<u8> = (0..1_000_000u32).map(|byte| byte as u8).collect();
        let mut save = Transfer::save(writer, state.clone()).unwrap();
        let mut load = Transfer::load(reader).unwrap();
        while save.event().is_some() {
            load.go_on();
            save.go_on();
        }
        assert_eq!(save.finish().unwrap(), None);
        assert_eq!(load.finish().unwrap(), Some(state));
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error() {
        let (reader, writer) = pipe();
        drop(reader);
        let error = Transfer::save(writer, vec![1]).unwrap().finish();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_state_without_end_is_cut_off_and_its_writer_told() {
        let (reader, mut writer) = pipe();
        let load = Transfer::load(reader).unwrap();
        let error = std::thread::scope(|scope| {
            // Ends when the pipe is closed.
            scope.spawn(move || while writer.write_all(&[0x5a; 4096]).is_ok() {});
            load.finish().unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
