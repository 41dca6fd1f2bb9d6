// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages of the vhost-user protocol in raw form: a header, a payload, file descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::sockets;

/// Bytes of a header: `request u32, flags u32, size u32`.
const HEADER_BYTES: usize = 12;
/// The longest payload that is accepted: the vhost crate's own limit.
const MAX_PAYLOAD: usize = 0x1000;
/// The header's flag of a message that wants an answer.
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// The header's flags of a reply: version 1 and the mark of a reply.
const REPLY_FLAGS: u32 = 1 | 1 << 2;
/// How long the rest of a message may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// The requests that the gate or the relay treats specially, by their names in the specification.
#[allow(missing_docs, reason = "the specification says what they are")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Bytes before those of the configuration in `GET_CONFIG` and `SET_CONFIG`: `offset u32, size u32, flags u32`.
pub const CONFIG_HEADER_BYTES: usize = 12;

/// One message: header, payload and file descriptors.
#[derive(Debug)]
pub struct Message {
    bytes: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// A request of our own, without payload.
    pub fn ask(request: u32) -> Self {
        Self::new(request, 1, &[])
    }

    /// The answer to `request`, with `words` as its payload.
    pub fn reply(request: u32, words: &[u32]) -> Self {
        Self::new(request, REPLY_FLAGS, words)
    }

    /// The acknowledgement of a `request` that has no other answer: whether it was refused.
    pub fn acknowledgement(request: u32, refused: bool) -> Self {
        Self::reply(request, &[refused.into(), 0])
    }

    fn new(request: u32, flags: u32, words: &[u32]) -> Self {
        let header = [request, flags, 4 * words.len() as u32];
        let bytes = header.iter().chain(words);
        Self {
            bytes: bytes.flat_map(|word| word.to_le_bytes()).collect(),
            fds: Vec::new(),
        }
    }

    /// Receives a message from `stream`; `None` if the peer has hung up.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a message that is too long or carries too many file descriptors,
    /// [`io::ErrorKind::TimedOut`] if its rest does not come, [`io::ErrorKind::UnexpectedEof`] if the peer hangs
    /// up in the middle.
    pub fn receive(stream: &UnixStream) -> io::Result<Option<Self>> {
        Self::receive_until(stream, Some(Instant::now() + PATIENCE))
    }

    /// As [`Message::receive`], but waits for its beginning until `deadline`; with `None` for ever.
    ///
    /// # Errors
    /// As [`Message::receive`].
    pub fn receive_until(
        stream: &UnixStream,
        deadline: Option<Instant>,
    ) -> io::Result<Option<Self>> {
        let mut message = Self {
            bytes: vec![0; HEADER_BYTES],
            fds: Vec::new(),
        };
        if !sockets::receive(stream, &mut message.bytes, &mut message.fds, deadline)? {
            return Ok(None);
        }
        let size = message.word(8) as usize;
        if size > MAX_PAYLOAD {
            let text = format!("a vhost-user message with {size} bytes of payload");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        message.bytes.resize(HEADER_BYTES + size, 0);
        let payload = &mut message.bytes[HEADER_BYTES..];
        if size != 0 && !sockets::receive(stream, payload, &mut message.fds, deadline)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(message))
    }

    /// Sends the message on.
    ///
    /// # Errors
    /// Any error of the socket.
    pub fn send(&self, stream: &UnixStream) -> io::Result<()> {
        sockets::send(stream, &self.bytes, &self.fds)
    }

    /// The number of the request.
    pub fn request(&self) -> u32 {
        self.word(0)
    }

    /// Whether the sender waits for an answer, even for a request that has none of its own.
    pub fn needs_reply(&self) -> bool {
        self.word(4) & FLAG_NEED_REPLY != 0
    }

    /// Cuts the payload, `regions u32, zero u32, 32 bytes a region`, after its last region. User Mode Linux sends more
    /// bytes, which the crate refuses.
    pub fn trim_mem_table(&mut self) {
        let regions = self.word(HEADER_BYTES) as usize;
        let exact = 8 + regions.saturating_mul(32);
        if HEADER_BYTES.saturating_add(exact) < self.bytes.len() {
            self.bytes.truncate(HEADER_BYTES + exact);
            // At most `MAX_PAYLOAD`, so it fits.
            self.bytes[8..HEADER_BYTES].copy_from_slice(&(exact as u32).to_le_bytes());
        }
    }

    /// The answer to this `GET_CONFIG`: `offset u32, size u32, flags u32` and the bytes from the configuration space
    /// `config`. The guest chooses what is read, and the front end may wait for as many bytes as it asked for, so
    /// everything past the end reads as zeros. A request without room for these bytes is answered with an error.
    pub fn config_answer(&self, config: &[u8]) -> Self {
        let [offset, size, flags] = [0, 4, 8].map(|at| self.payload_word(at));
        let room = self.payload().len().saturating_sub(CONFIG_HEADER_BYTES);
        let size = if room == size as usize { size } else { 0 };
        let mut answer = Self::reply(request::GET_CONFIG, &[offset, size, flags]);
        let there = config.iter().skip(offset as usize).copied();
        let bytes = there.chain(std::iter::repeat(0)).take(size as usize);
        answer.bytes.extend(bytes);
        // No longer than the request, so it fits.
        let length = CONFIG_HEADER_BYTES as u32 + size;
        answer.bytes[8..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        answer
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// The payload's 32-bit word at byte `at`; 0 past the end.
    pub fn payload_word(&self, at: usize) -> u32 {
        self.word(HEADER_BYTES + at)
    }

    /// The payload's 64-bit word at byte `at`; 0 past the end.
    pub fn payload_u64(&self, at: usize) -> u64 {
        u64::from(self.payload_word(at)) | u64::from(self.payload_word(at + 4)) << 32
    }

    /// The message's 32-bit word at byte `at` from the header's start; 0 past the end.
    fn word(&self, at: usize) -> u32 {
        self.bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |word| u32::from_le_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    fn bytes(request: u32, payload: &[u8]) -> Vec<u8> {
        spec_testing::vhost_user::message(request, 1, payload)
    }

    #[test]
    fn a_memory_table_is_cut_after_its_last_region_and_keeps_its_files() {
        let mut payload = [0; 72];
        payload[0] = 1;
        payload[40] = 0xff;
        let (front, back) = UnixStream::pair().unwrap();
        let file = front.as_fd().try_clone_to_owned().unwrap();
        sockets::send(&front, &bytes(request::SET_MEM_TABLE, &payload), &[file]).unwrap();
        let mut table = Message::receive(&back).unwrap().unwrap();
        table.trim_mem_table();
        assert_eq!(table.bytes, bytes(request::SET_MEM_TABLE, &payload[..40]));
        assert_eq!(table.fds.len(), 1);
    }

    #[test]
    fn a_memory_table_that_claims_too_many_regions_is_not_cut() {
        for regions in [2, 3, u32::MAX] {
            let payload = [&regions.to_le_bytes()[..], &[0; 36]].concat();
            let mut table = Message {
                bytes: bytes(request::SET_MEM_TABLE, &payload),
                fds: Vec::new(),
            };
            table.trim_mem_table();
            assert_eq!(table.bytes, bytes(request::SET_MEM_TABLE, &payload));
        }
    }

    #[test]
    fn a_message_that_claims_more_than_a_page_is_refused_at_once() {
        let (mut front, back) = UnixStream::pair().unwrap();
        let mut header = bytes(1, &[]);
        header[8..12].copy_from_slice(&0x1001u32.to_le_bytes());
        front.write_all(&header).unwrap();
        let error = Message::receive(&back).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_configuration_is_filled_with_zeros_up_to_the_size_asked_for() {
        let ask = |offset: u32, size: u32, room: usize| {
            let words = [offset, size, 1];
            let mut payload = spec_testing::bytes::words(&words);
            payload.resize(CONFIG_HEADER_BYTES + room, 0xff);
            let bytes = bytes(request::GET_CONFIG, &payload);
            let fds = Vec::new();
            Message { bytes, fds }.config_answer(&[1, 2, 3])
        };
        for (offset, size, room, given) in [
            (0, 3, 3, &[1, 2, 3][..]),
            (1, 1, 1, &[2]),
            (2, 4, 4, &[3, 0, 0, 0]),
            (u32::MAX, 2, 2, &[0, 0]),
            (0, 0, 0, &[]),
            (0, 3, 2, &[]),
            (0, u32::MAX, 16, &[]),
        ] {
            let answer = ask(offset, size, room);
            let words = [0, 4, 8].map(|at| answer.payload_word(at));
            assert_eq!(words, [offset, given.len() as u32, 1]);
            assert_eq!(answer.payload()[CONFIG_HEADER_BYTES..], *given);
            assert_eq!(answer.word(8) as usize, answer.payload().len());
        }
    }
}
