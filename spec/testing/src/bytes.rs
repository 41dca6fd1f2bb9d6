// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers as protocols write them.

/// Little-endian words of 32 bits, one after the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian words of 64 bits, one after the other.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}
