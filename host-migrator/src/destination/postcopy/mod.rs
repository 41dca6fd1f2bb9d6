// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that runs here while its memory is still coming from the source (`spec/postcopy.md`).
//!
//! [`Postcopy`] is the handle of a VMM. Its lanes bring pages: the first carries what is asked for, the others the rest. When a
//! lane fails, all end, and whoever needs a missing page waits until [`Postcopy::recover`] has new ones.

mod asking;
mod early;
mod file;
mod handle;
mod lanes;
mod placing;
mod saving;
mod status;

pub(super) use early::Early;
pub use handle::{Postcopy, PostcopyOptions};
pub use saving::StoppedGuest;
pub use status::{PostcopyEvent, PostcopyPhase, PostcopyStatus};
