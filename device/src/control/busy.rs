// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for a busy device.

use std::time::Duration;

use parking_lot::FairMutexGuard;
use spec::control::Refusal;

use crate::balloon::Balloon;
use crate::vhost_user::backend::Backend;

/// How long a request waits for a busy device. Giving back much memory takes a while, and an access to lent memory may
/// block for ever.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

/// The balloon of `backend`, for one request.
///
/// # Errors
/// [`Refusal::Busy`] if another thread holds its lock for longer than [`PATIENCE`].
pub(super) fn balloon(backend: &Backend) -> Result<FairMutexGuard<'_, Balloon>, Refusal> {
    backend.balloon_within(PATIENCE).ok_or(Refusal::Busy)
}
