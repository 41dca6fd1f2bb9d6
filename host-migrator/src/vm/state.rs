// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a machine besides its memory: named sections, each with a version of its own.

use spec::stream::{MAX_STATE_BYTES, MAX_STATE_NAME, MAX_STATE_SECTIONS, StatePrefix};

use super::error::MachineError;

/// One part of a machine's state, such as a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateSection {
    /// Which part it is.
    pub name: String,
    /// The version of the format of `bytes`.
    pub version: u32,
    /// The state, in the VMM's own format.
    pub bytes: Vec<u8>,
}

/// The state of a machine besides its memory. The source adds sections; the destination takes those that it knows, and what
/// it leaves is refused by name.
///
/// ```
/// use host_migrator::MachineState;
///
/// let mut state = MachineState::default();
/// state.add("vcpus", 2, vec![1, 2, 3])?;
/// state.add("serial", 1, vec![])?;
/// let vcpus = state.take("vcpus")?;
/// assert_eq!((vcpus.version, vcpus.bytes), (2, vec![1, 2, 3]));
/// assert_eq!(state.finish().unwrap_err().to_string(), "this machine knows no section \"serial\" of a state");
/// # Ok::<(), host_migrator::StateError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineState {
    sections: Vec<StateSection>,
    /// Bytes of all sections that were added.
    total: u64,
}

/// A machine's state that cannot be, or does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A name that is empty, or longer than [`MAX_STATE_NAME`].
    #[error("{0:?} cannot be the name of a section of a machine's state: it is empty or too long")]
    Name(String),
    /// Two sections have the same name.
    #[error("the machine's state has two sections {0:?}")]
    Twice(String),
    /// More than [`MAX_STATE_SECTIONS`].
    #[error("the machine's state has more than {MAX_STATE_SECTIONS} sections: {0:?} is too many")]
    TooMany(String),
    /// More bytes than a section may have, or all of them together.
    #[error("the machine's state is too large with the {bytes} bytes of section {name:?}")]
    TooLarge {
        /// The section.
        name: String,
        /// Its bytes.
        bytes: usize,
    },
    /// A section that the machine needs did not come.
    #[error("the machine's state has no section {0:?}")]
    Missing(String),
    /// A section of which the machine knows nothing.
    #[error("this machine knows no section {0:?} of a state")]
    Unknown(String),
}

impl MachineState {
    /// Adds section `name`.
    ///
    /// # Errors
    /// [`StateError`] if there is one of this name, or the state becomes larger than the stream allows.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        version: u32,
        bytes: Vec<u8>,
    ) -> Result<(), StateError> {
        let name = name.into();
        let length = bytes.len() as u64;
        if name.is_empty() || name.len() > MAX_STATE_NAME {
            return Err(StateError::Name(name));
        }
        if self.sections.iter().any(|section| section.name == name) {
            return Err(StateError::Twice(name));
        }
        if self.sections.len() == MAX_STATE_SECTIONS {
            return Err(StateError::TooMany(name));
        }
        if length > StatePrefix::MAX_PART || self.total + length > MAX_STATE_BYTES {
            let bytes = bytes.len();
            return Err(StateError::TooLarge { name, bytes });
        }
        self.total += length;
        self.sections.push(StateSection {
            name,
            version,
            bytes,
        });
        Ok(())
    }

    /// The sections that have not been taken, in their order.
    pub fn sections(&self) -> &[StateSection] {
        &self.sections
    }

    /// Takes out section `name`, which the machine needs.
    ///
    /// # Errors
    /// [`StateError::Missing`] if there is none.
    pub fn take(&mut self, name: &str) -> Result<StateSection, StateError> {
        self.take_if_any(name)
            .ok_or_else(|| StateError::Missing(name.into()))
    }

    /// As [`MachineState::take`], for a section that need not be there.
    pub fn take_if_any(&mut self, name: &str) -> Option<StateSection> {
        let index = (self.sections.iter()).position(|section| section.name == name)?;
        Some(self.sections.remove(index))
    }

    /// Makes sure that every section was taken. The engine does so after [`DestinationMachine::load`].
    ///
    /// [`DestinationMachine::load`]: super::machine::DestinationMachine::load
    ///
    /// # Errors
    /// [`StateError::Unknown`] names a section that was not.
    pub fn finish(&self) -> Result<(), StateError> {
        match self.sections.first() {
            Some(section) => Err(StateError::Unknown(section.name.clone())),
            None => Ok(()),
        }
    }
}

impl From<StateError> for MachineError {
    fn from(error: StateError) -> Self {
        let action = match error {
            StateError::Missing(_) | StateError::Unknown(_) => "load the machine's state",
            _ => "save the machine's state",
        };
        let reason = error.to_string();
        Self { action, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_bounded_in_every_way_and_names_what_is_too_much() {
        let mut state = MachineState::default();
        for name in [String::new(), "a".repeat(MAX_STATE_NAME + 1)] {
            let error = StateError::Name(name.clone());
            assert_eq!(state.add(name, 1, vec![]), Err(error));
        }
        state.add("a", 1, vec![]).unwrap();
        assert_eq!(
            state.add("a", 2, vec![]),
            Err(StateError::Twice("a".into()))
        );
        let part = StatePrefix::MAX_PART as usize;
        let too_large = |name: &str, bytes| {
            let name = name.into();
            Err(StateError::TooLarge { name, bytes })
        };
        assert_eq!(
            state.add("b", 1, vec![0; part + 1]),
            too_large("b", part + 1)
        );
        for name in ["b", "c", "d", "e"] {
            state.add(name, 1, vec![0; part]).unwrap();
        }
        let left = (MAX_STATE_BYTES - 4 * StatePrefix::MAX_PART) as usize;
        assert_eq!(
            state.add("f", 1, vec![0; left + 1]),
            too_large("f", left + 1)
        );
        state.add("f", 1, vec![0; left]).unwrap();
        for number in state.sections().len()..MAX_STATE_SECTIONS {
            state.add(format!("n{number}"), 1, vec![]).unwrap();
        }
        let one_more = state.add("last", 1, vec![]);
        assert_eq!(one_more, Err(StateError::TooMany("last".into())));
    }

    #[test]
    fn what_is_missing_or_left_is_named() {
        let mut state = MachineState::default();
        state.add("vcpus", 1, vec![1]).unwrap();
        assert_eq!(
            state.take("clock"),
            Err(StateError::Missing("clock".into()))
        );
        assert_eq!(state.finish(), Err(StateError::Unknown("vcpus".into())));
        assert_eq!(state.take("vcpus").unwrap().bytes, [1]);
        assert_eq!(state.finish(), Ok(()));
    }
}
