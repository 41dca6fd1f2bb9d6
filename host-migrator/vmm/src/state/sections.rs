// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sections of a machine's state. Each has a version of its own and a value in postcard's format.

use host_migrator::MachineState as Sections;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{GuestKind, MachineState, StateError};
use crate::versioned::Part;

/// A section: its name, and what it is.
struct Section(&'static str, Part);

const MACHINE: Section = section("machine", "the state of the machine as a whole", 1);
const VCPUS: Section = section("vcpus", "the state of the vCPUs", 1);
const PLATFORM: Section = section(
    "platform",
    "the state of interrupt controllers and clock",
    1,
);
const CONSOLE: Section = section("serial-console", "the state of the serial console", 1);
const BALLOON: Section = section("balloon", "the state of the balloon", 1);
const AGENT_PORT: Section = section("agent-port", "the state of the port for an agent", 1);

const fn section(name: &'static str, what: &'static str, version: u32) -> Section {
    Section(name, Part { what, version })
}

/// What belongs to no other section.
#[derive(Serialize, Deserialize)]
struct General {
    guest: GuestKind,
    regions: Vec<(u64, u64)>,
    held: bool,
}

/// Names and versions of all sections that this program knows.
pub fn sections() -> Vec<(String, u32)> {
    [MACHINE, VCPUS, PLATFORM, CONSOLE, BALLOON, AGENT_PORT]
        .map(|Section(name, part)| (name.into(), part.version))
        .into()
}

impl Section {
    fn put(&self, value: &impl Serialize, into: &mut Sections) -> Result<(), StateError> {
        let Self(name, part) = self;
        Ok(into.add(*name, part.version, part.write(value)?)?)
    }

    fn take<T: DeserializeOwned>(&self, from: &mut Sections) -> Result<T, StateError> {
        let section = from.take(self.0)?;
        Ok(self.1.read(section.version, &section.bytes)?)
    }

    /// As [`Section::take`], of a device that the machine may lack.
    fn take_if_any<T: DeserializeOwned>(
        &self,
        from: &mut Sections,
    ) -> Result<Option<T>, StateError> {
        let section = from.take_if_any(self.0);
        let read =
            |section: host_migrator::StateSection| self.1.read(section.version, &section.bytes);
        Ok(section.map(read).transpose()?)
    }
}

impl MachineState {
    /// The state in sections. A device that the machine lacks has none.
    ///
    /// # Errors
    /// [`StateError`] if a section cannot be written or is too large.
    pub fn to_sections(&self) -> Result<Sections, StateError> {
        let mut sections = Sections::default();
        let general = General {
            guest: self.guest,
            regions: self.regions.clone(),
            held: self.held,
        };
        MACHINE.put(&general, &mut sections)?;
        VCPUS.put(&self.vcpus, &mut sections)?;
        PLATFORM.put(&self.platform, &mut sections)?;
        CONSOLE.put(&self.console, &mut sections)?;
        if let Some(balloon) = &self.balloon {
            BALLOON.put(balloon, &mut sections)?;
        }
        if let Some(port) = &self.agent_port {
            AGENT_PORT.put(port, &mut sections)?;
        }
        Ok(sections)
    }

    /// Takes the sections of [`MachineState::to_sections`].
    ///
    /// # Errors
    /// [`StateError`] names the section that is missing, damaged or of another version.
    pub fn take_from(sections: &mut Sections) -> Result<Self, StateError> {
        let general: General = MACHINE.take(sections)?;
        Ok(Self {
            guest: general.guest,
            regions: general.regions,
            vcpus: VCPUS.take(sections)?,
            platform: PLATFORM.take(sections)?,
            console: CONSOLE.take(sections)?,
            balloon: BALLOON.take_if_any(sections)?,
            agent_port: AGENT_PORT.take_if_any(sections)?,
            held: general.held,
        })
    }
}
