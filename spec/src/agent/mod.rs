// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent protocol: a guest that tells the device which of its pages are free, page by page.
//!
//! The balloon driver hints blocks of 4 MiB, which it has to allocate. The agent reads the kernel's own page
//! flags instead: it allocates nothing that it reports, and sees every free page. The device asks for a map
//! when a hint epoch opens, the agent answers with [`Answer::Map`] frames and one [`Answer::End`], each tagged with
//! the epoch.
//! A map that was read in the epoch says no more and no less than a driver's hint: the page was free at some
//! moment after the epoch had opened.
//!
//! Frames go over whatever carries bytes (a virtio-console port, vsock, a serial line). None of these
//! has messages, and some lose bytes when a side starts anew, so every frame is sealed with checksums and a
//! reader finds the next one by itself, see [`Deframer`]. `agent-protocol.md` has the drawings.
//!
//! | module | what it is |
//! |---|---|
//! | [`frame`] | header, checksums, finding frames in bytes |
//! | [`map`] | free pages of a range as bits or as runs, whichever is smaller |
//! | [`message`] | what is asked and answered |
//! | `proof` | how an agent shows that it is root's (feature `agent-proof`) |

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
