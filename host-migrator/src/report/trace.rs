// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Records what migrator and machine do, for a check against the rule (`spec/trace.md`).

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use spec::trace::{Event, Record, Recorder, Role, bytes_for};

use crate::memory::map_file::MapMemory;

/// The number of slots of a trace for a guest of a few gigabytes. The file is sparse: unused slots take no space.
pub const DEFAULT_SLOTS: u64 = 1 << 21;

/// Where a part records what it does. The default records nothing and costs a comparison.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Part>);

#[derive(Clone, Debug)]
struct Part {
    recorder: Arc<Recorder<MapMemory>>,
    role: Role,
}

impl Trace {
    /// Makes an empty trace with room for `slots` records at `path`, which must not exist.
    ///
    /// # Errors
    /// [`io::Error`] if the file cannot be made.
    pub fn create(path: &Path, slots: u64) -> io::Result<()> {
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "too many slots");
        let bytes = bytes_for(slots).ok_or_else(too_large)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(bytes)?;
        Recorder::format(MapMemory::map(file)?, slots).map_err(io::Error::other)
    }

    /// Opens the trace at `path`, to record as the migrator of `host`. The file must not shrink while it
    /// is open.
    ///
    /// # Errors
    /// [`io::Error`] if there is no trace.
    pub fn open(path: &Path, host: u16) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let recorder = Recorder::open(MapMemory::map(file)?, host).map_err(io::Error::other)?;
        Ok(Self(Some(Part {
            recorder: Arc::new(recorder),
            role: Role::Migrator,
        })))
    }

    /// The same trace, for another part of the host.
    pub fn of(&self, role: Role) -> Self {
        Self(self.0.clone().map(|part| Part { role, ..part }))
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What all parts have recorded so far, each record as [`spec::trace::Reader::records`] returns it, and the number
    /// of records that found no room.
    pub fn records(&self) -> (Vec<Option<Record>>, u64) {
        let recorder = self.0.as_ref().map(|part| &part.recorder);
        recorder.map_or_else(Default::default, |recorder| {
            (recorder.records().collect(), recorder.dropped())
        })
    }

    /// Records `event`.
    pub fn record(&self, event: Event) {
        if let Some(part) = &self.0 {
            part.recorder.record(part.role, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::trace::Reader;

    #[test]
    fn two_that_open_a_trace_record_into_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        assert!(Trace::open(&path, 0).is_err(), "nobody has made it");
        Trace::create(&path, 16).unwrap();
        assert!(Trace::create(&path, 16).is_err(), "it is there already");
        for host in [1, 2] {
            Trace::open(&path, host).unwrap().record(Event::Paused);
        }
        let machine = Trace::open(&path, 2).unwrap().of(Role::Machine);
        machine.record(Event::Run);
        let bytes = std::fs::read(&path).unwrap();
        let records: Vec<_> = Reader::open(&bytes).unwrap().records().collect();
        assert_eq!(machine.records(), (records.clone(), 0));
        let actor = |record: Option<Record>| record.map(|r| (r.actor.role, r.actor.host)).unwrap();
        let actors: Vec<_> = records.into_iter().map(actor).collect();
        let expected = [(Role::Migrator, 1), (Role::Migrator, 2), (Role::Machine, 2)];
        assert_eq!(actors, expected);
    }

    #[test]
    fn a_file_that_is_no_trace_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        for bytes in [0, 1, 4096, 8192] {
            std::fs::write(&path, vec![0; bytes]).unwrap();
            assert!(Trace::open(&path, 0).is_err(), "{bytes} bytes");
        }
    }
}
