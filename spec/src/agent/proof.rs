// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How an agent proves that it is root's, over a transport that any process of the guest can open.
//!
//! Device and agent have the same secret [`Key`]. The device sends a [`Challenge`], random bytes that it uses once. The
//! agent answers with a [`Proof`]: the HMAC-SHA-256, under the key, of the direction, the protocol's version and the
//! challenge. So a proof is useless on another connection, in the other direction or in another version.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::VERSION;
use super::frame::{FRAME_HEADER_BYTES, Frame, seal_header};

/// Names the purpose and the direction.
const CONTEXT: &[u8] = b"lacuna agent proof, agent to device";
/// Bytes of a challenge and of a proof.
const BYTES: usize = 32;

/// The secret that only root can read, in the guest and on the host.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

/// The key is too short or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLengthError;

impl Key {
    /// The fewest bytes of a key.
    pub const MIN_BYTES: usize = 32;
    /// The most bytes of a key.
    pub const MAX_BYTES: usize = 4096;

    /// The key whose bytes are the content of its file.
    ///
    /// # Errors
    /// [`KeyLengthError`] for fewer bytes than [`Key::MIN_BYTES`] or more than [`Key::MAX_BYTES`].
    pub fn new(bytes: &[u8]) -> Result<Self, KeyLengthError> {
        if !(Self::MIN_BYTES..=Self::MAX_BYTES).contains(&bytes.len()) {
            return Err(KeyLengthError);
        }
        let mac = Hmac::new_from_slice(bytes).map_err(|_| KeyLengthError)?;
        Ok(Self(mac))
    }

    /// The answer to `challenge`, which proves possession of the key.
    pub fn prove(&self, challenge: &Challenge) -> Proof {
        Proof(self.mac_of(challenge).finalize().into_bytes().into())
    }

    /// Whether `proof` answers `challenge`. Takes as long for a wrong proof as for a right one.
    pub fn accepts(&self, challenge: &Challenge, proof: &Proof) -> bool {
        self.mac_of(challenge).verify_slice(&proof.0).is_ok()
    }

    fn mac_of(&self, challenge: &Challenge) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(CONTEXT);
        mac.update(&VERSION.to_le_bytes());
        mac.update(&challenge.0);
        mac
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl core::fmt::Display for KeyLengthError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "a key has {} to {} bytes",
            Key::MIN_BYTES,
            Key::MAX_BYTES
        )
    }
}

impl core::error::Error for KeyLengthError {}

/// The device's challenge, its first frame on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge([u8; BYTES]);

impl Challenge {
    /// The kind of its frame.
    pub const KIND: u16 = 4;
    /// Bytes of its frame.
    pub const FRAME_BYTES: usize = FRAME_HEADER_BYTES + BYTES;

    /// A challenge of these bytes, which must be random and used only once.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The challenge as a frame.
    pub fn to_frame(self) -> [u8; Self::FRAME_BYTES] {
        frame_of(Self::KIND, &self.0)
    }

    /// The challenge in `frame`, if it is one.
    pub fn read(frame: &Frame<'_>) -> Option<Self> {
        payload_of(Self::KIND, frame).map(Self)
    }
}

/// The answer to a [`Challenge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof([u8; BYTES]);

impl Proof {
    /// The kind of its frame.
    pub const KIND: u16 = 0x85;
    /// Bytes of its frame.
    pub const FRAME_BYTES: usize = FRAME_HEADER_BYTES + BYTES;

    /// The proof as a frame.
    pub fn to_frame(self) -> [u8; Self::FRAME_BYTES] {
        frame_of(Self::KIND, &self.0)
    }

    /// The proof in `frame`, if it is one.
    pub fn read(frame: &Frame<'_>) -> Option<Self> {
        payload_of(Self::KIND, frame).map(Self)
    }
}

fn frame_of(kind: u16, payload: &[u8; BYTES]) -> [u8; FRAME_HEADER_BYTES + BYTES] {
    let mut bytes = [0; FRAME_HEADER_BYTES + BYTES];
    let (header, rest) = bytes.split_at_mut(FRAME_HEADER_BYTES);
    rest.copy_from_slice(payload);
    seal_header(header, kind, 0, payload);
    bytes
}

fn payload_of(kind: u16, frame: &Frame<'_>) -> Option<[u8; BYTES]> {
    let is_of_kind = frame.kind == kind && frame.epoch == 0;
    is_of_kind.then(|| frame.payload.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Deframer;

    fn key(byte: u8) -> Key {
        Key::new(&[byte; Key::MIN_BYTES]).unwrap()
    }

    #[test]
    fn a_proof_holds_for_its_key_and_its_challenge_only() {
        let challenge = Challenge::new([1; 32]);
        let proof = key(7).prove(&challenge);
        assert!(key(7).accepts(&challenge, &proof));
        assert!(!key(8).accepts(&challenge, &proof));
        assert!(!key(7).accepts(&Challenge::new([2; 32]), &proof));
        for bit in 0..256 {
            let mut wrong = proof;
            wrong.0[bit / 8] ^= 1 << (bit % 8);
            assert!(!key(7).accepts(&challenge, &wrong), "bit {bit}");
        }
        assert!(!key(7).accepts(&challenge, &Proof(challenge.0)));
    }

    /// Computed by Python's `hmac` as `agent-protocol.md` describes it, for 32 bytes of 7 as the key and 32 bytes of 1
    /// as the challenge.
    #[test]
    fn a_proof_is_what_the_document_says() {
        let proof = key(7).prove(&Challenge::new([1; 32]));
        assert_eq!(proof.0, KNOWN);
    }

    const KNOWN: [u8; 32] = [
        0x95, 0x37, 0x47, 0x70, 0xf0, 0xc6, 0xe1, 0xa6, 0x48, 0x75, 0x81, 0xd6, 0xb5, 0xf3, 0xc6,
        0x1b, 0x48, 0x95, 0xc2, 0x5e, 0x70, 0xad, 0xad, 0xbd, 0x3d, 0xb3, 0xc4, 0xb9, 0x4f, 0xad,
        0x12, 0xf6,
    ];

    #[test]
    fn both_frames_survive_the_way_and_are_told_apart() {
        let challenge = Challenge::new([9; 32]);
        let proof = key(7).prove(&challenge);
        for bytes in [challenge.to_frame(), proof.to_frame()] {
            let mut deframer = Deframer::default();
            deframer.space()[..bytes.len()].copy_from_slice(&bytes);
            deframer.filled(bytes.len());
            let frame = deframer.next_frame().unwrap();
            let (asked, answered) = (Challenge::read(&frame), Proof::read(&frame));
            let is_challenge = bytes == challenge.to_frame();
            assert_eq!(asked, is_challenge.then_some(challenge));
            assert_eq!(answered, (!is_challenge).then_some(proof));
        }
        let short = Frame {
            kind: Proof::KIND,
            epoch: 0,
            payload: &[0; 31],
        };
        assert_eq!(Proof::read(&short), None);
    }

    #[test]
    fn a_key_that_is_too_short_or_too_long_is_refused() {
        assert!(Key::new(&[0; Key::MIN_BYTES - 1]).is_err());
        assert!(Key::new(&[0; Key::MAX_BYTES + 1]).is_err());
        assert!(Key::new(&[0; Key::MAX_BYTES]).is_ok());
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(std::format!("{:?}", key(7)), "Key(secret)");
    }
}
