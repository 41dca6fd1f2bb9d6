// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests that start several parts: see README.md beside this folder.

mod bare;
mod clauses;
mod failures;
mod lab;
#[cfg(feature = "nested")]
mod nested;
