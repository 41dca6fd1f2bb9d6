// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pipe for a back end's own state (vhost-user SET_DEVICE_STATE_FD).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// The most state that a back end may have. A balloon's state may have a bit for every page of the guest.
pub const MAX_BYTES: usize = 9 << 20;

/// Reads a state until the other end is closed.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if nothing comes for `limit`, [`io::ErrorKind::InvalidData`] for more than
/// [`MAX_BYTES`], or the error of the pipe.
pub fn receive(mut from: File, limit: Duration) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    let mut part = [0; 4096];
    loop {
        wait(&from, PollFlags::IN, limit)?;
        match from.read(&mut part)? {
            0 => return Ok(state),
            n if state.len() + n > MAX_BYTES => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the state has more than {MAX_BYTES} bytes"),
                ));
            }
            n => state.extend_from_slice(&part[..n]),
        }
    }
}

/// Writes a state and closes the pipe.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if nothing is taken for `limit`, or the error of the pipe.
pub fn send(mut to: File, state: &[u8], limit: Duration) -> io::Result<()> {
    // So that a write returns when the pipe is full.
    let flags = rustix::fs::fcntl_getfl(&to)?;
    rustix::fs::fcntl_setfl(&to, flags | OFlags::NONBLOCK)?;
    let mut left = state;
    while !left.is_empty() {
        wait(&to, PollFlags::OUT, limit)?;
        let written = to.write(left)?;
        left = &left[written..];
    }
    Ok(())
}

fn wait(file: impl AsFd, events: PollFlags, limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(&file, events)], Some(&limit))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    const LIMIT: Duration = Duration::from_millis(20);

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    #[test]
    fn a_state_arrives_as_it_was_sent() {
        let (reader, writer) = pipe();
        let state = vec![7; 50_000];
        send(writer, &state, LIMIT).unwrap();
        assert_eq!(receive(reader, LIMIT).unwrap(), state);
    }

    #[test]
    fn a_peer_that_does_nothing_ends_in_a_timeout() {
        let (reader, writer) = pipe();
        let clone = writer.try_clone().unwrap();
        let error = send(clone, &vec![0; 1 << 20], LIMIT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(reader);
        let (reader, _writer) = pipe();
        let error = receive(reader, LIMIT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_endless_state_is_refused() {
        let (reader, writer) = pipe();
        let endless = vec![0; MAX_BYTES + (1 << 20)];
        let patience = Duration::from_secs(20);
        let writing = std::thread::spawn(move || send(writer, &endless, patience));
        let error = receive(reader, patience).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(writing.join().unwrap().is_err());
    }
}
