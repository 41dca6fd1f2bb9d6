// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers as protocols encode them.

/// Little-endian 32-bit words, one after the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian 64-bit words, one after the other.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}
