// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The messages about the port on the control queues (virtio 1.2, section 5.3.6.2), and the state of driver and device.
//! No I/O.

use serde::{Deserialize, Serialize};

/// The number of the only port. Port 0 is not a console unless the device says so.
const PORT: u32 = 0;
/// The port's name, by which the agent finds it.
pub const PORT_NAME: &str = "org.lacuna.agent.0";

/// Bytes of a message without a name: `id u32, event u16, value u16`, little-endian.
pub const MESSAGE_BYTES: usize = 8;

/// The driver is up (value 1), or failed.
const DEVICE_READY: u16 = 0;
/// There is a port.
const PORT_ADD: u16 = 1;
/// The driver has set the port up (value 1), or failed.
const PORT_READY: u16 = 3;
/// The sender's end of the port was opened (value 1) or closed.
const PORT_OPEN: u16 = 6;
/// The port's name follows.
const NAME: u16 = 7;

/// The state of driver and device. The device's next message follows from it, so there is no queue of messages that could
/// grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// The driver is up.
    device_ready: bool,
    /// The driver was told that there is a port.
    added: bool,
    /// The driver has set the port up.
    port_ready: bool,
    /// The driver was told the port's name.
    named: bool,
    /// The driver was last told that the host's end is open.
    host_open: bool,
    /// A program of the guest has the port open.
    guest_open: bool,
}

/// A message to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// There is a port.
    Add,
    /// Its name.
    Name,
    /// Whether the host's end is open.
    Open(bool),
}

impl Message {
    /// The bytes on the queue.
    pub fn to_bytes(self) -> Vec<u8> {
        let (event, value, name) = match self {
            Self::Add => (PORT_ADD, 1, ""),
            Self::Name => (NAME, 1, PORT_NAME),
            Self::Open(open) => (PORT_OPEN, open.into(), ""),
        };
        let mut bytes = PORT.to_le_bytes().to_vec();
        bytes.extend(u16::to_le_bytes(event));
        bytes.extend(u16::to_le_bytes(value));
        bytes.extend(name.as_bytes());
        bytes
    }
}

impl PortState {
    /// Takes a message of the driver. Invalid messages are ignored.
    pub fn heard(&mut self, message: [u8; MESSAGE_BYTES]) {
        let [p0, p1, p2, p3, e0, e1, v0, v1] = message;
        let port = u32::from_le_bytes([p0, p1, p2, p3]);
        let is_on = u16::from_le_bytes([v0, v1]) == 1;
        match u16::from_le_bytes([e0, e1]) {
            DEVICE_READY => self.device_ready = is_on,
            PORT_READY if port == PORT && self.added => self.port_ready = is_on,
            PORT_OPEN if port == PORT && self.port_ready => self.guest_open = is_on,
            _ => {}
        }
    }

    /// The next message to the driver, if there is one; `host_open` says whether the host's end is open now.
    pub fn next_message(&self, host_open: bool) -> Option<Message> {
        if !self.device_ready {
            None
        } else if !self.added {
            Some(Message::Add)
        } else if !self.port_ready {
            None
        } else if !self.named {
            Some(Message::Name)
        } else {
            (self.host_open != host_open).then_some(Message::Open(host_open))
        }
    }

    /// Takes note that `message` was sent.
    pub fn told(&mut self, message: Message) {
        match message {
            Message::Add => self.added = true,
            Message::Name => self.named = true,
            Message::Open(open) => self.host_open = open,
        }
    }

    /// Whether the driver has set the port up, so that it can be connected.
    pub fn is_ready(&self) -> bool {
        self.device_ready && self.port_ready
    }

    /// Whether the driver was last told that the host's end is open.
    pub fn believed_open(&self) -> bool {
        self.host_open
    }

    /// Whether a program of the guest has the port open. Without one the driver drops what it receives.
    pub fn is_open(&self) -> bool {
        self.guest_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(port: u32, event: u16, value: u16) -> [u8; MESSAGE_BYTES] {
        let bytes = [
            &port.to_le_bytes()[..],
            &event.to_le_bytes(),
            &value.to_le_bytes(),
        ];
        bytes.concat().try_into().unwrap()
    }

    /// Sends the driver all messages that are due.
    fn tell_all(state: &mut PortState, host_open: bool) -> Vec<Message> {
        let next = || {
            let message = state.next_message(host_open)?;
            state.told(message);
            Some(message)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_driver_is_told_step_by_step_as_it_comes_up() {
        let mut state = PortState::default();
        assert_eq!(tell_all(&mut state, true), []);
        state.heard(message(u32::MAX, DEVICE_READY, 1));
        assert_eq!(tell_all(&mut state, true), [Message::Add]);
        assert!(!state.is_ready());
        state.heard(message(PORT, PORT_READY, 1));
        assert!(state.is_ready());
        let said = tell_all(&mut state, true);
        assert_eq!(said, [Message::Name, Message::Open(true)]);
        state.heard(message(PORT, PORT_OPEN, 1));
        assert!(state.is_open());
        assert_eq!(tell_all(&mut state, false), [Message::Open(false)]);
    }

    #[test]
    fn messages_out_of_turn_or_about_other_ports_change_nothing() {
        let mut state = PortState::default();
        for event in 0..=u16::MAX {
            state.heard(message(1, event, 1));
        }
        state.heard(message(PORT, PORT_OPEN, 1));
        let up = PortState {
            device_ready: true,
            ..Default::default()
        };
        assert_eq!(state, up);
    }

    #[test]
    fn a_name_follows_the_message_about_it() {
        let bytes = Message::Name.to_bytes();
        assert_eq!(bytes[..MESSAGE_BYTES], message(PORT, NAME, 1));
        assert_eq!(&bytes[MESSAGE_BYTES..], PORT_NAME.as_bytes());
        assert_eq!(Message::Open(true).to_bytes(), message(PORT, PORT_OPEN, 1));
    }
}
