// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control protocol: the requests of migrators and people to the balloon device, over a unix socket.
//!
//! Every frame is a 16-byte header and at most [`MAX_PAYLOAD`] bytes of payload, all little-endian.
//! Clients send requests; the device answers each with exactly one reply of the same sequence
//! number. [`Request::SetHintMap`] and [`Reply::PageMap`] carry one file descriptor (SCM_RIGHTS).
//! `control-protocol.md` has the drawings and the order of things.
//!
//! A migrator opens and closes epochs of hints into a map of its own. A person sets the balloon's target, reads
//! statistics and maps, and may ask the guest for hints while it is not being migrated.

mod balloon_status;
mod frame;
mod hint_state;
mod refusal;
mod reply;
mod report;
mod request;
mod statistics;

pub use balloon_status::BalloonStatus;
pub use frame::{ControlError, HEADER_BYTES, Header, MAGIC, MAX_PAYLOAD, VERSION};
pub use hint_state::{HintHolder, HintState, RoundEnd};
pub use refusal::Refusal;
pub use reply::Reply;
pub use report::{DeviceStatus, EpochReport};
pub use request::{PageSet, Request};
pub use statistics::{MAX_STATISTICS, Statistics};

#[cfg(test)]
mod tests;
