// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent protocol: an agent in the guest tells the device which of the guest's pages are free, page by page.
//!
//! The balloon driver hints blocks of 4 MiB, which it must allocate. The agent reads the kernel's page flags instead. It
//! does not allocate the pages that it reports, and it sees every free page. The device asks for a map when a hint
//! epoch opens. The agent answers with [`Answer::Map`] frames and one [`Answer::End`], each of which carries the epoch.
//! A page in such a map means the same as a driver's hint: it was free at some moment after the epoch had opened.
//!
//! Frames travel over any byte stream (a virtio-console port, vsock, a serial line). None of these has messages, and
//! some lose bytes when a side restarts. So every frame has checksums, and a reader finds the next frame by itself, see
//! [`Deframer`]. `agent-protocol.md` has the drawings.
//!
//! | module | what it is |
//! |---|---|
//! | [`frame`] | header, checksums, finding frames in bytes |
//! | [`map`] | free pages of a range as bits or as runs, whichever is smaller |
//! | [`message`] | requests and answers |
//! | `proof` | how an agent proves that it is root's (feature `agent-proof`) |

pub mod frame;
pub mod map;
pub mod message;
#[cfg(feature = "agent-proof")]
pub mod proof;

pub use frame::{Deframer, FRAME_HEADER_BYTES, Frame, MAX_FRAME, MAX_FRAME_PAYLOAD};
pub use map::{FreeMap, MAX_MAP_PAGES};
pub use message::{Answer, Ask, MessageError, Settings, Totals};

/// The protocol's version, in [`Answer::Hello`].
pub const VERSION: u32 = 1;
