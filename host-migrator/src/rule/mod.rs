// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a page may be skipped: the order of arming, hinting and harvesting (`spec/free-page-hinting.md`).

pub mod clause;
pub(crate) mod early_harvest;
pub(crate) mod given_up;
#[cfg(all(loom, test))]
mod loom;
pub(crate) mod tracker;
