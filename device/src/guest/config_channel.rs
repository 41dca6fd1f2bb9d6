// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tells the guest that its configuration has changed.
//!
//! vhost-user has a message for this, on a socket that the front end gives the back end. The message has no content:
//! the guest reads the configuration again. The device asks for no reply, because the reply would change nothing, and
//! because the front end may be waiting for the device at that moment.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::SendFlags;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, version 1, no payload.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// The socket for messages to the front end, once it has given one.
#[derive(Debug, Default)]
pub struct ConfigChannel(Mutex<Option<UnixStream>>);

impl ConfigChannel {
    /// Uses `socket` from now on.
    pub fn set(&self, socket: OwnedFd) {
        *self.0.lock() = Some(UnixStream::from(socket));
    }

    /// Closes the socket: the front end has gone.
    pub fn clear(&self) {
        *self.0.lock() = None;
    }

    /// Tells the front end, which interrupts the guest. Never blocks.
    ///
    /// # Errors
    /// If the front end has given no socket, or closed it.
    pub fn config_changed(&self) -> io::Result<()> {
        let socket = self.0.lock();
        let Some(socket) = socket.as_ref() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        match rustix::net::send(
            socket,
            &CONFIG_CHANGE,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            // A full socket already holds such messages, and the front end will read one of them.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_message_has_the_bytes_of_the_vhost_user_specification() {
        let (mut front, back) = UnixStream::pair().unwrap();
        let channel = ConfigChannel::default();
        assert!(channel.config_changed().is_err());
        channel.set(back.into());
        channel.config_changed().unwrap();
        let mut message = [0; 12];
        front.read_exact(&mut message).unwrap();
        assert_eq!(message[..4], 2u32.to_le_bytes());
        assert_eq!(message[8..], [0; 4]);
    }

    #[test]
    fn a_front_end_that_does_not_read_blocks_nobody_and_one_that_has_gone_is_an_error() {
        let (front, back) = UnixStream::pair().unwrap();
        let channel = ConfigChannel::default();
        channel.set(back.into());
        for _ in 0..100_000 {
            channel.config_changed().unwrap();
        }
        drop(front);
        assert!(channel.config_changed().is_err());
    }
}
