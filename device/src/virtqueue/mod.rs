// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtqueues that a front end lends.
//!
//! | module | what it is |
//! |---|---|
//! | [`ring`] | a virtqueue that the front end starts, enables and stops |
//! | [`buffers`] | takes buffers from a virtqueue and gives them back |
//! | [`budget`] | bounds the work of one pass over a virtqueue |
//! | [`position`] | how far a virtqueue has been read, to notice when a driver sets it up anew |

pub mod budget;
pub mod buffers;
pub mod position;
pub mod ring;
