// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages of bitmaps and logs.

/// The numbers of the bits that are set in `bytes`. Bit 0 is the lowest bit of the first byte.
pub fn set_in(bytes: &[u8]) -> Vec<u64> {
    let bits = (0..).zip(bytes).flat_map(|(at, byte)| {
        let set = (0..8).filter(move |bit| byte >> bit & 1 == 1);
        set.map(move |bit| 8 * at + bit)
    });
    bits.collect()
}

/// The runs of `pages`, which must be in ascending order: the first page and the length of each.
pub fn runs(pages: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page => *count += 1,
            _ => runs.push((page, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_bytes_have_higher_bit_numbers() {
        assert_eq!(set_in(&[0b1000_0001, 0, 0b10]), [0, 7, 17]);
    }

    #[test]
    fn adjacent_pages_are_one_run() {
        assert_eq!(runs([3, 4, 5, 7, 9, 10]), [(3, 3), (7, 1), (9, 2)]);
        assert_eq!(runs([]), []);
    }
}
