// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's structures in the serialized state.

use serde::de::value::BytesDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error};
use serde::{Serialize, Serializer};

/// A structure of KVM that is read only from exactly its own number of bytes. By themselves these types accept any
/// number, and add zeros or cut bytes off.
#[derive(Clone, Copy, Debug)]
pub struct Exact<T>(pub T);

impl<T: Serialize> Serialize for Exact<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Exact<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        if bytes.len() != size_of::<T>() {
            return Err(Error::invalid_length(
                bytes.len(),
                &std::any::type_name::<T>(),
            ));
        }
        T::deserialize(BytesDeserializer::new(bytes)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_regs;

    #[test]
    fn a_structure_of_another_size_is_refused() {
        let regs = Exact(kvm_regs {
            rip: 0x1234,
            ..Default::default()
        });
        let good = postcard::to_allocvec(&regs).unwrap();
        let back: Exact<kvm_regs> = postcard::from_bytes(&good).unwrap();
        assert_eq!(back.0, regs.0);
        for bytes in [0, 1, size_of::<kvm_regs>() - 8, size_of::<kvm_regs>() + 8] {
            let other = postcard::to_allocvec(&vec![0u8; bytes]).unwrap();
            assert!(
                postcard::from_bytes::<Exact<kvm_regs>>(&other).is_err(),
                "{bytes}"
            );
        }
    }
}
