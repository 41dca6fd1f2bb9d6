// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames of a guest's agent.

use spec::PageRange;
use spec::agent::{Answer, Frame, MAX_FRAME, MAX_FRAME_PAYLOAD, map};

/// A frame of any kind, even one that no agent sends.
pub fn frame(kind: u16, epoch: u64, payload: &[u8]) -> Vec<u8> {
    let frame = Frame {
        kind,
        epoch,
        payload,
    };
    frame.encode(&mut [0; MAX_FRAME]).to_vec()
}

/// A frame that reports free pages: of the `count` pages from `first` on, those whose bits are set in `words`.
///
/// # Panics
/// If no frame can hold that.
pub fn map_frame(epoch: u64, first: u64, count: u64, words: &[u64]) -> Vec<u8> {
    let range = PageRange::new(first, count).expect("a range that can be written");
    let mut payload = [0; MAX_FRAME_PAYLOAD];
    let length = map::encode(range, words, &mut payload);
    frame(Answer::MAP, epoch, &payload[..length])
}
