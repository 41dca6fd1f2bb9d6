// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtqueues, as a front end lends them.
//!
//! | module | what it is |
//! |---|---|
//! | [`ring`] | a virtqueue, which the front end starts, enables and stops |
//! | [`buffers`] | taking buffers from a virtqueue and giving them back |
//! | [`budget`] | how much of a virtqueue one pass may walk |
//! | [`position`] | how far a virtqueue has been read, to know a new driver's from it |

pub mod budget;
pub mod buffers;
pub mod position;
pub mod ring;
