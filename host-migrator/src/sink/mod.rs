// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where pages go.

pub(crate) mod batch;
pub(crate) mod link;
pub(crate) mod run_table;
