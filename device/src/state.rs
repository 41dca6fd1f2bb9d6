// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What migrates with the device, and the pipe it migrates through.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use spec::balloon::CommandId;

const MAGIC: [u8; 4] = *b"LBAL";
const VERSION: u32 = 1;
/// How long a front end may leave its end of the pipe open after it asked how the transfer went.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state of a suspended balloon. That hinting was going on is not part of it: at the destination the
/// guest is told to take its pages back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Pages the host wants in the balloon.
    pub num_pages: u32,
    /// Pages that are in it.
    pub actual: u32,
    /// The guest's page poison value.
    pub poison_val: u32,
    /// The last command id that was used: the guest must not see it again.
    pub command_id: CommandId,
}

/// Bytes that are not the state of a balloon.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Of another length.
    #[error("a balloon's state has {expected} bytes, not {found}", expected = DeviceState::BYTES)]
    Length {
        /// Bytes that came.
        found: usize,
    },
    /// Does not start like one.
    #[error("this is not the state of a balloon")]
    Magic,
    /// Of another version.
    #[error("balloon state version {0}, this build knows {VERSION}")]
    Version(u32),
    /// The command id is a reserved number.
    #[error("balloon state with the reserved command id {0}")]
    CommandId(u32),
}

impl DeviceState {
    /// Bytes of a state: magic, version, and four fields, little-endian.
    pub const BYTES: usize = 24;

    /// The bytes to transfer.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let words = [
            u32::from_le_bytes(MAGIC),
            VERSION,
            self.num_pages,
            self.actual,
            self.poison_val,
            self.command_id.get(),
        ];
        let mut bytes = [0; Self::BYTES];
        for (field, word) in bytes.chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`DeviceState::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`StateError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let (words, []) = bytes.as_chunks::<4>() else {
            return Err(StateError::Length { found: bytes.len() });
        };
        let &[magic, version, num_pages, actual, poison_val, command_id] = words else {
            return Err(StateError::Length { found: bytes.len() });
        };
        if magic != MAGIC {
            return Err(StateError::Magic);
        }
        let version = u32::from_le_bytes(version);
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let command_id = u32::from_le_bytes(command_id);
        Ok(Self {
            num_pages: u32::from_le_bytes(num_pages),
            actual: u32::from_le_bytes(actual),
            poison_val: u32::from_le_bytes(poison_val),
            command_id: CommandId::new(command_id).ok_or(StateError::CommandId(command_id))?,
        })
    }
}

/// A state on its way through the front end's pipe, in a thread of its own: the front end reads or writes
/// its end only after the device has answered.
#[derive(Debug)]
pub struct Transfer(Receiver<io::Result<Option<DeviceState>>>);

impl Transfer {
    /// Starts to write `state` to `pipe`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn save(mut pipe: File, state: DeviceState) -> io::Result<Self> {
        Self::start(move || pipe.write_all(&state.to_bytes()).map(|()| None))
    }

    /// Starts to read a state from `pipe`, up to its end.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn load(pipe: File) -> io::Result<Self> {
        Self::start(move || {
            let mut bytes = Vec::new();
            // One byte more than a state has shows that it is longer.
            pipe.take(DeviceState::BYTES as u64 + 1)
                .read_to_end(&mut bytes)?;
            DeviceState::from_bytes(&bytes)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        })
    }

    /// Waits for the end of the transfer; the state that arrived, if one was to.
    ///
    /// # Errors
    /// What went wrong, or [`io::ErrorKind::TimedOut`] if the pipe stays open.
    pub fn finish(self) -> io::Result<Option<DeviceState>> {
        self.0
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn start(
        work: impl FnOnce() -> io::Result<Option<DeviceState>> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("device_state".into())
            .spawn(move || {
                // A front end that did not wait for the end does not want to know.
                let _ = sender.send(work());
            })?;
        Ok(Self(receiver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn state() -> DeviceState {
        DeviceState {
            num_pages: 1,
            actual: 2,
            poison_val: 3,
            command_id: CommandId::new(0x8000_0007).unwrap(),
        }
    }

    #[test]
    fn a_state_survives_the_way_through_a_pipe() {
        let (reader, writer) = io::pipe().unwrap();
        let save = Transfer::save(File::from(OwnedFd::from(writer)), state()).unwrap();
        let load = Transfer::load(File::from(OwnedFd::from(reader))).unwrap();
        assert_eq!(save.finish().unwrap(), None);
        assert_eq!(load.finish().unwrap(), Some(state()));
    }

    #[test]
    fn a_state_that_was_tampered_with_is_refused_by_name() {
        let good = state().to_bytes();
        let with = |at: usize, word: u32| {
            let mut bytes = good;
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            DeviceState::from_bytes(&bytes)
        };
        assert!(matches!(with(0, 0), Err(StateError::Magic)));
        assert!(matches!(with(4, 2), Err(StateError::Version(2))));
        assert!(matches!(with(20, 0), Err(StateError::CommandId(0))));
        assert!(matches!(with(20, 1), Err(StateError::CommandId(1))));
        for length in (0..24).chain([25, 28, 100]) {
            let mut bytes = good.to_vec();
            bytes.resize(length, 0);
            let result = DeviceState::from_bytes(&bytes);
            assert!(matches!(result, Err(StateError::Length { found }) if found == length));
        }
    }
}
