// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory, and maps of it.

pub(crate) mod aligned;
pub mod bitmap;
pub mod error;
pub mod guest_memory;
pub(crate) mod holes;
mod huge_pages;
pub mod layout;
pub mod lent;
pub(crate) mod map_file;
pub mod mapping;
mod marks;
pub mod page_buffer;
pub mod page_store;
pub mod ram;
pub mod ram_region;
pub mod sealed_file;
pub(crate) mod words;
pub mod zero;
