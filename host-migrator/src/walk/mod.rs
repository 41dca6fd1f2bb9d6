// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages go next, and as what.

pub mod hold_back;
pub(crate) mod later_holes;
pub(crate) mod left_out;
pub(crate) mod untouched;
