// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Live migration that never sends memory the guest does not use: the command.

pub mod nested;
