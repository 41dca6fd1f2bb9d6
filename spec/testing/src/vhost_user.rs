// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages of the vhost-user protocol, after its specification.

use crate::bytes::words;

/// A message: `request u32, flags u32, size u32`, and the payload.
pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = words(&[request, flags, payload.len() as u32]);
    message.extend_from_slice(payload);
    message
}
