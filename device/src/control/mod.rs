// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: a migrator and people, requests and replies of [`spec::control`].
//!
//! | module | what it is |
//! |---|---|
//! | `server` | one thread, and a bounded number of connections that take turns |
//! | `connection` | bytes in and out, with time limits |
//! | `peer` | the requests that the other end may make, and the answers |
//! | `busy` | waits for a busy device |
//! | `people` | the answers to people |
//! | `page_map_writer` | a map of guest memory, written to a file |

mod busy;
mod connection;
mod page_map_writer;
mod peer;
mod people;
mod server;

pub use server::ControlServer;
