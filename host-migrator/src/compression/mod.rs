// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compression of pages on their way to the destination: what the operator may choose, and both directions.
//!
//! Each section is compressed by itself, so that any channel can carry it and nothing has to be flushed.

mod method;
mod packer;
mod unpacker;

pub use method::{Compression, ZstdLevel};
pub use packer::{Packed, Packer};
pub use unpacker::{UnpackError, Unpacker};
