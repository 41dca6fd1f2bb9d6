// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames, and how a reader finds them in a stream that may begin or end in the middle of one.

use crate::wire;

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"LAGT";
/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// The most payload a frame may have: the bits of [`super::MAX_MAP_PAGES`] pages, and what goes before them.
pub const MAX_FRAME_PAYLOAD: usize = 16 + super::MAX_MAP_PAGES as usize / 8;
/// The most bytes of a frame.
pub const MAX_FRAME: usize = FRAME_HEADER_BYTES + MAX_FRAME_PAYLOAD;

/// A frame: `magic, kind u16, zero u16, epoch u64, length u32, payload crc u32, zero u32, header crc u32`, then
/// the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is, see [`super::Ask`] and [`super::Answer`].
    pub kind: u16,
    /// The hint epoch that it belongs to, 0 for none.
    pub epoch: u64,
    /// The payload.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Writes the frame into `bytes` and returns the bytes of the frame. A payload of more than [`MAX_FRAME_PAYLOAD`] bytes
    /// is cut off.
    pub fn encode<'b>(&self, bytes: &'b mut [u8; MAX_FRAME]) -> &'b [u8] {
        let length = self.payload.len().min(MAX_FRAME_PAYLOAD);
        let (header, rest) = bytes.split_at_mut(FRAME_HEADER_BYTES);
        rest[..length].copy_from_slice(&self.payload[..length]);
        seal_header(header, self.kind, self.epoch, &rest[..length]);
        &bytes[..FRAME_HEADER_BYTES + length]
    }
}

/// Writes the header of a frame of kind `kind`, whose payload is already in the `length` bytes after the header, and
/// returns the frame's bytes. This saves the copy that [`Frame::encode`] makes.
///
/// # Panics
/// If `length` is more than [`MAX_FRAME_PAYLOAD`].
pub fn seal(bytes: &mut [u8; MAX_FRAME], kind: u16, epoch: u64, length: usize) -> &[u8] {
    let (header, rest) = bytes.split_at_mut(FRAME_HEADER_BYTES);
    seal_header(header, kind, epoch, &rest[..length]);
    &bytes[..FRAME_HEADER_BYTES + length]
}

pub(super) fn seal_header(header: &mut [u8], kind: u16, epoch: u64, payload: &[u8]) {
    header.fill(0);
    wire::put(header, 0, &MAGIC);
    wire::put(header, 4, &kind.to_le_bytes());
    wire::put(header, 8, &epoch.to_le_bytes());
    wire::put(header, 16, &(payload.len() as u32).to_le_bytes());
    wire::put(header, 20, &crc32fast::hash(payload).to_le_bytes());
    wire::seal(header);
}

/// Finds frames in a stream of bytes.
///
/// Bytes that are not part of a valid frame are skipped and counted: the rest of a truncated frame, kernel messages on a
/// serial line, a frame with a wrong checksum. The deframer holds at most one frame.
#[derive(Debug)]
pub struct Deframer {
    bytes: [u8; MAX_FRAME],
    filled: usize,
    /// Length of the frame at the start of the buffer that was returned and can be dropped.
    given: usize,
    passed_over: u64,
}

impl Default for Deframer {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_FRAME],
            filled: 0,
            given: 0,
            passed_over: 0,
        }
    }
}

impl Deframer {
    /// The buffer for the next bytes; never empty after [`Deframer::next_frame`] returned `None`. Call
    /// [`Deframer::filled`] afterwards.
    pub fn space(&mut self) -> &mut [u8] {
        self.drop_given();
        &mut self.bytes[self.filled..]
    }

    /// Takes note that `count` bytes were written to [`Deframer::space`].
    pub fn filled(&mut self, count: usize) {
        self.filled = (self.filled + count).min(MAX_FRAME);
    }

    /// Bytes that were not part of a frame.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// Drops the bytes of an unfinished frame, whose sender has gone.
    pub fn restart(&mut self) {
        self.drop_given();
        self.passed_over += self.filled as u64;
        self.filled = 0;
    }

    /// The next whole frame, if it has arrived.
    pub fn next_frame(&mut self) -> Option<Frame<'_>> {
        self.drop_given();
        loop {
            self.pass_over_to_magic();
            if self.filled < FRAME_HEADER_BYTES {
                return None;
            }
            let header = &self.bytes[..FRAME_HEADER_BYTES];
            let length = wire::u32_at(header, 16) as usize;
            if !wire::is_sealed(header) || length > MAX_FRAME_PAYLOAD {
                self.pass_over(1);
                continue;
            }
            let end = FRAME_HEADER_BYTES + length;
            if self.filled < end {
                return None;
            }
            if crc32fast::hash(&self.bytes[FRAME_HEADER_BYTES..end]) != wire::u32_at(header, 20) {
                // The next frame may begin within the bytes that this header claims.
                self.pass_over(1);
                continue;
            }
            self.given = end;
            let header = &self.bytes[..FRAME_HEADER_BYTES];
            return Some(Frame {
                kind: wire::u16_at(header, 4),
                epoch: wire::u64_at(header, 8),
                payload: &self.bytes[FRAME_HEADER_BYTES..end],
            });
        }
    }

    /// Skips bytes until the first ones could begin a frame.
    fn pass_over_to_magic(&mut self) {
        let bytes = &self.bytes[..self.filled];
        let start = (0..bytes.len()).find(|&at| {
            let rest = &bytes[at..];
            MAGIC.starts_with(&rest[..rest.len().min(MAGIC.len())])
        });
        self.pass_over(start.unwrap_or(bytes.len()));
    }

    fn pass_over(&mut self, count: usize) {
        self.passed_over += count as u64;
        self.drop_first(count);
    }

    fn drop_given(&mut self) {
        let given = core::mem::take(&mut self.given);
        self.drop_first(given);
    }

    fn drop_first(&mut self, count: usize) {
        self.bytes.copy_within(count..self.filled, 0);
        self.filled -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn bytes_of(kind: u16, epoch: u64, payload: &[u8]) -> Vec<u8> {
        let frame = Frame {
            kind,
            epoch,
            payload,
        };
        frame.encode(&mut [0; MAX_FRAME]).to_vec()
    }

    /// Feeds `stream` in pieces of `piece` bytes and returns what was found.
    fn found(deframer: &mut Deframer, stream: &[u8], piece: usize) -> Vec<(u16, u64, Vec<u8>)> {
        let mut frames = Vec::new();
        for mut part in stream.chunks(piece) {
            while !part.is_empty() {
                let space = deframer.space();
                let count = space.len().min(part.len());
                space[..count].copy_from_slice(&part[..count]);
                deframer.filled(count);
                part = &part[count..];
                while let Some(frame) = deframer.next_frame() {
                    frames.push((frame.kind, frame.epoch, frame.payload.to_vec()));
                }
            }
        }
        frames
    }

    #[test]
    fn a_frame_of_the_greatest_length_comes_through() {
        let payload = [0x5a; MAX_FRAME_PAYLOAD];
        let stream = bytes_of(2, 9, &payload).repeat(2);
        let frames = found(&mut Deframer::default(), &stream, 1000);
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[1], (2, 9, payload.to_vec()));
    }

    #[test]
    fn a_frame_with_any_byte_changed_is_passed_over_and_the_next_is_found() {
        let good = bytes_of(1, 7, b"payload");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let stream = [bad, bytes_of(3, 8, b"next")].concat();
            // A frame with a wrong length is only found to be invalid when all the bytes that it claims have arrived.
            let mut deframer = Deframer::default();
            let frames = found(&mut deframer, &stream, 5);
            assert_eq!(frames, [(3, 8, b"next".to_vec())], "byte {at}");
            assert_eq!(deframer.passed_over(), good.len() as u64);
        }
    }

    #[test]
    fn after_a_restart_half_a_frame_hides_nothing() {
        let mut deframer = Deframer::default();
        let half = &bytes_of(1, 1, &[7; 500])[..300];
        assert!(found(&mut deframer, half, 64).is_empty());
        deframer.restart();
        let frames = found(&mut deframer, &bytes_of(2, 2, b"x"), 64);
        assert_eq!(frames, [(2, 2, b"x".to_vec())]);
    }

    proptest! {
        #[test]
        fn frames_between_any_noise_are_found_however_the_bytes_are_cut(
            frames in proptest::collection::vec(
                (any::<u16>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..100)), 0..6),
            // Noise without the first byte of the magic cannot look like the start of a frame.
            noise in proptest::collection::vec(proptest::collection::vec(0u8..0x40, 0..50), 7),
            piece in 1usize..200,
        ) {
            let mut stream = noise[0].clone();
            for (frame, noise) in frames.iter().zip(&noise[1..]) {
                stream.extend(bytes_of(frame.0, frame.1, &frame.2));
                stream.extend(noise);
            }
            let mut deframer = Deframer::default();
            prop_assert_eq!(found(&mut deframer, &stream, piece), frames.clone());
            let noisy: usize = noise[..=frames.len()].iter().map(Vec::len).sum();
            prop_assert_eq!(deframer.passed_over(), noisy as u64);
        }

        #[test]
        fn no_bytes_make_it_fail_or_fill_up(stream: Vec<u8>, piece in 1usize..40) {
            let mut deframer = Deframer::default();
            found(&mut deframer, &stream, piece);
            prop_assert!(!deframer.space().is_empty());
        }
    }
}
