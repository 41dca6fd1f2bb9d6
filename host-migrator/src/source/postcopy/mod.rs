// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The source of a guest that is handed over before its memory (`spec/postcopy.md`): it serves the pages that it has promised, until
//! the destination says that nothing is missing.

pub(super) mod collecting;
pub(super) mod joining;
mod lanes;
pub(super) mod orders;
mod promise;
mod server;
pub(super) mod start;
pub(super) mod switchover;
mod window;

pub(super) use server::Server;
