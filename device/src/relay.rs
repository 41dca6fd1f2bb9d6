// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands between the front end and the vhost-user crate, and why.
//!
//! The crate cannot send configuration change messages and hides the socket for them. So its daemon gets
//! its requests through this relay, which passes every message on as it came, file descriptors included,
//! but for two:
//! - `SET_BACKEND_REQ_FD`: the relay keeps the socket, see [`ConfigChannel`], and answers;
//! - `SET_MEM_TABLE`: User Mode Linux sends more bytes than its regions need, which the crate refuses; the
//!   relay cuts them off.
//!
//! Kicks, interrupts and guest memory do not pass through here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::config_channel::ConfigChannel;
use crate::sockets;

/// Bytes of a vhost-user header: `request u32, flags u32, size u32`.
const HEADER_BYTES: usize = 12;
/// The most payload that is passed on: what the vhost-user crate takes at most.
const MAX_PAYLOAD: usize = 0x1000;
const SET_MEM_TABLE: u32 = 5;
const SET_BACKEND_REQ_FD: u32 = 21;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// Version 1 and the mark of a reply.
const REPLY_FLAGS: u32 = 1 | 1 << 2;

/// Passes messages between `front` and `back` until one of them hangs up.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a message that is too long or carries too many file descriptors, and
/// whatever hinders the passing.
pub fn relay(front: &UnixStream, back: &UnixStream, channel: &ConfigChannel) -> io::Result<()> {
    loop {
        let [from_front, from_back] = sockets::wait([front.as_fd(), back.as_fd()], None)?;
        if from_back {
            let Some(message) = Message::receive(back)? else {
                return Ok(());
            };
            message.send(front)?;
        }
        if from_front {
            let Some(mut message) = Message::receive(front)? else {
                return Ok(());
            };
            match message.request() {
                SET_BACKEND_REQ_FD => {
                    if let Some(reply) = keep_channel(message, channel) {
                        reply.send(front)?;
                    }
                    continue;
                }
                SET_MEM_TABLE => message.trim_mem_table(),
                _ => {}
            }
            message.send(back)?;
        }
    }
}

/// Takes the socket out of a `SET_BACKEND_REQ_FD` and makes the reply, if one is asked for.
fn keep_channel(mut message: Message, channel: &ConfigChannel) -> Option<Message> {
    let socket = message.fds.pop();
    let failed = u64::from(socket.is_none());
    if let Some(socket) = socket {
        channel.set(socket);
    }
    (message.word(4) & FLAG_NEED_REPLY != 0).then(|| {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 8);
        for word in [SET_BACKEND_REQ_FD, REPLY_FLAGS, 8] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&failed.to_le_bytes());
        Message {
            bytes,
            fds: Vec::new(),
        }
    })
}

/// One vhost-user message: header and payload, and what came along.
#[derive(Debug)]
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    fn receive(stream: &UnixStream) -> io::Result<Option<Self>> {
        let mut message = Self {
            bytes: vec![0; HEADER_BYTES],
            fds: Vec::new(),
        };
        if !sockets::receive(stream, &mut message.bytes, &mut message.fds, None)? {
            return Ok(None);
        }
        let size = message.word(8) as usize;
        if size > MAX_PAYLOAD {
            let text = format!("a vhost-user message with {size} bytes of payload");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        message.bytes.resize(HEADER_BYTES + size, 0);
        let payload = &mut message.bytes[HEADER_BYTES..];
        if size != 0 && !sockets::receive(stream, payload, &mut message.fds, None)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(message))
    }

    fn send(&self, stream: &UnixStream) -> io::Result<()> {
        sockets::send(stream, &self.bytes, &self.fds)
    }

    fn request(&self) -> u32 {
        self.word(0)
    }

    /// The header's or payload's word at byte `at`, 0 past the end.
    fn word(&self, at: usize) -> u32 {
        self.bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |word| u32::from_le_bytes(*word))
    }

    /// Cuts the payload, `regions u32, zero u32, 32 bytes a region`, to its regions.
    fn trim_mem_table(&mut self) {
        let regions = self.word(HEADER_BYTES) as usize;
        let exact = 8 + regions.saturating_mul(32);
        if HEADER_BYTES.saturating_add(exact) < self.bytes.len() {
            self.bytes.truncate(HEADER_BYTES + exact);
            // At most `MAX_PAYLOAD`, so it fits.
            self.bytes[8..HEADER_BYTES].copy_from_slice(&(exact as u32).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::thread;

    fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [request, flags, payload.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Runs `front` and `back` as the two ends of a relay and returns how the relay ended.
    fn between(
        channel: &ConfigChannel,
        front: impl FnOnce(UnixStream) + Send,
        back: impl FnOnce(UnixStream) + Send,
    ) -> io::Result<()> {
        let (front_end, relay_front) = UnixStream::pair().unwrap();
        let (back_end, relay_back) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| front(front_end));
            scope.spawn(|| back(back_end));
            let result = relay(&relay_front, &relay_back, channel);
            drop((relay_front, relay_back));
            result
        })
    }

    fn read(mut stream: &UnixStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_back_end_channel_is_kept_and_answered_and_nothing_else_is() {
        let channel = ConfigChannel::default();
        let (ours, theirs) = UnixStream::pair().unwrap();
        between(
            &channel,
            |front| {
                let request = message(SET_BACKEND_REQ_FD, 1 | FLAG_NEED_REPLY, &[]);
                sockets::send(&front, &request, &[theirs.into()]).unwrap();
                let reply = read(&front, 20);
                assert_eq!(reply, message(SET_BACKEND_REQ_FD, REPLY_FLAGS, &[0; 8]));
                sockets::send(&front, &message(1, 1, &[]), &[]).unwrap();
                assert_eq!(read(&front, 20), message(1, REPLY_FLAGS, &[7; 8]));
            },
            |back| {
                assert_eq!(read(&back, 12), message(1, 1, &[]));
                let reply = message(1, REPLY_FLAGS, &[7; 8]);
                (&back).write_all(&reply).unwrap();
                let _ = (&back).read(&mut [0]);
            },
        )
        .unwrap();
        channel.config_changed().unwrap();
        assert_eq!(read(&ours, 4), 2u32.to_le_bytes());
    }

    #[test]
    fn a_channel_request_without_a_socket_is_answered_with_failure() {
        let channel = ConfigChannel::default();
        between(
            &channel,
            |mut front| {
                let request = message(SET_BACKEND_REQ_FD, 1 | FLAG_NEED_REPLY, &[]);
                front.write_all(&request).unwrap();
                assert_ne!(read(&front, 20)[HEADER_BYTES..], [0; 8]);
            },
            |mut back| assert_eq!(back.read(&mut [0]).unwrap(), 0),
        )
        .unwrap();
    }

    #[test]
    fn a_memory_table_is_cut_to_its_regions_and_keeps_its_files() {
        let mut payload = [0; 72];
        payload[0] = 1;
        payload[40] = 0xff;
        let channel = ConfigChannel::default();
        between(
            &channel,
            |front| {
                let file = front.as_fd().try_clone_to_owned().unwrap();
                sockets::send(&front, &message(SET_MEM_TABLE, 1, &payload), &[file]).unwrap();
                let _ = (&front).read(&mut [0]);
            },
            |back| {
                let (mut bytes, mut fds) = ([0; 52], Vec::new());
                sockets::receive(&back, &mut bytes, &mut fds, None).unwrap();
                assert_eq!(bytes[..], message(SET_MEM_TABLE, 1, &payload[..40]));
                assert_eq!(fds.len(), 1);
            },
        )
        .unwrap();
    }

    #[test]
    fn a_memory_table_that_claims_more_regions_than_it_has_is_passed_on_as_it_is() {
        for regions in [2, 3, u32::MAX] {
            let payload = [&regions.to_le_bytes()[..], &[0; 36]].concat();
            let mut table = Message {
                bytes: message(SET_MEM_TABLE, 1, &payload),
                fds: Vec::new(),
            };
            table.trim_mem_table();
            assert_eq!(table.bytes, message(SET_MEM_TABLE, 1, &payload));
        }
    }

    #[test]
    fn a_message_that_claims_more_than_a_page_ends_the_relay() {
        let error = between(
            &ConfigChannel::default(),
            |mut front| {
                let mut header = message(1, 1, &[]);
                header[8..12].copy_from_slice(&0x1001u32.to_le_bytes());
                front.write_all(&header).unwrap();
            },
            drop,
        );
        // The back end has hung up too; whichever the relay saw first, it ended.
        assert!(error.is_ok() || error.is_err_and(|e| e.kind() == io::ErrorKind::InvalidData));
    }
}
