// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The payload of a [`SectionKind::MachineState`] section: `version u32, name length u32, name, bytes`.

use super::{MAX_PLAIN_PAYLOAD, MAX_STATE_NAME, SectionKind, StreamError};
use crate::wire;

/// What comes before the name and the bytes of a part of a machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatePrefix {
    /// The version of the bytes' format, which the VMM chooses.
    pub version: u32,
    /// Bytes of the name that follows, from 1 to [`MAX_STATE_NAME`].
    pub name_bytes: u32,
}

impl StatePrefix {
    /// Bytes of the prefix.
    pub const BYTES: usize = 8;
    /// The most bytes of a part's own. They fit its section with the longest name.
    pub const MAX_PART: u64 = MAX_PLAIN_PAYLOAD - (Self::BYTES + MAX_STATE_NAME) as u64;

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        wire::put(&mut bytes, 0, &self.version.to_le_bytes());
        wire::put(&mut bytes, 4, &self.name_bytes.to_le_bytes());
        bytes
    }
}

/// Reads a payload: version, name and bytes.
///
/// # Errors
/// [`StreamError::Malformed`] if it is cut off, or has a name that is empty, too long, or no UTF-8.
pub fn state_from_bytes(payload: &[u8]) -> Result<(u32, &str, &[u8]), StreamError> {
    let malformed = StreamError::Malformed(SectionKind::MachineState);
    let (prefix, rest) = payload
        .split_first_chunk::<{ StatePrefix::BYTES }>()
        .ok_or(malformed)?;
    let name_bytes = wire::u32_at(prefix, 4) as usize;
    if name_bytes == 0 || name_bytes > MAX_STATE_NAME {
        return Err(malformed);
    }
    let (name, bytes) = rest.split_at_checked(name_bytes).ok_or(malformed)?;
    let name = core::str::from_utf8(name).map_err(|_| malformed)?;
    Ok((wire::u32_at(prefix, 0), name, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(name: &[u8], bytes: &[u8]) -> std::vec::Vec<u8> {
        let prefix = StatePrefix {
            version: 7,
            name_bytes: name.len() as u32,
        };
        [&prefix.to_bytes(), name, bytes].concat()
    }

    #[test]
    fn a_part_is_read_as_it_was_written() {
        let payload = payload("\u{e9}cran".as_bytes(), &[1, 2, 3]);
        assert_eq!(
            state_from_bytes(&payload),
            Ok((7, "\u{e9}cran", &[1, 2, 3][..]))
        );
    }

    #[test]
    fn a_part_that_is_cut_off_or_has_no_proper_name_is_refused() {
        let whole = payload(b"balloon", &[]);
        for len in 0..whole.len() {
            assert!(state_from_bytes(&whole[..len]).is_err(), "{len} bytes");
        }
        for name in [&b""[..], &[0xff; 4], &[b'a'; MAX_STATE_NAME + 1]] {
            assert!(
                state_from_bytes(&payload(name, &[1; 400])).is_err(),
                "{name:?}"
            );
        }
        assert!(state_from_bytes(&payload(&[b'a'; MAX_STATE_NAME], &[])).is_ok());
    }
}
