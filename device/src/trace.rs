// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recording what the device does, for a check against the rule (`spec/trace.md`).

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use spec::trace::{Event, Recorder, Role};

use crate::memory::shared_map::SharedMap;

/// Where the device records what it does. The default records nothing and costs a comparison.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Arc<Recorder<SharedMap>>>);

impl Trace {
    /// Opens the trace at `path`, to record as the device of `host`. The file must not shrink while it is open.
    ///
    /// # Errors
    /// [`io::Error`] if there is no trace.
    pub fn open(path: &Path, host: u16) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let memory = SharedMap::whole(file)?;
        let recorder = Recorder::open(memory, host).map_err(io::Error::other)?;
        Ok(Self(Some(Arc::new(recorder))))
    }

    /// Records `event`.
    pub fn record(&self, event: Event) {
        if let Some(recorder) = &self.0 {
            recorder.record(Role::Device, event);
        }
    }

    /// Records `event` of each of `items`.
    pub(crate) fn record_each<T: Copy>(&self, items: &[T], event: fn(T) -> Event) {
        if self.0.is_some() {
            items.iter().for_each(|item| self.record(event(*item)));
        }
    }
}

/// A trace as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceFile {
    /// The file; `lacuna trace create` makes it.
    pub path: std::path::PathBuf,
    /// The number that the parts of this device's host share.
    pub host: u16,
}
