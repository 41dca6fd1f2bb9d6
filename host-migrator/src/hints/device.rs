// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hints from a balloon device behind a control socket (`spec/control-protocol.md`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use spec::balloon::stat;
use spec::control::{EpochReport, PageSet, Reply, Request};
use spec::hint_map::{HintBits, HintMap, HintPhase, Tellers};
use spec::{PAGE_SIZE, PageRange};

use crate::memory::bitmap::MigrationBitmap;

use super::control_client::ControlClient;
use super::given_up;
use crate::memory::map_file::{MapFile, MapMemory};
use crate::vm::hint_source::{HintError, HintSource};

/// If the device does not answer in this time, the migration goes on without hints.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers that are only for statistics may take longer, such as the map of a large guest. No pages are sent in this
/// time, but the guest runs.
const STATISTICS_PATIENCE: Duration = Duration::from_secs(5);
/// Older statistics say little about the hints to come, and are not used.
const OLDEST_STATISTICS: Duration = Duration::from_secs(10);

/// The hints of a balloon device.
#[derive(Debug)]
pub struct DeviceHints {
    path: PathBuf,
    connection: Option<ControlClient>,
    /// A second connection, for statistics only. If it fails, hints still work.
    aside: Option<ControlClient>,
    /// Whether the device failed to answer on it in time. If so, it is not asked again in this migration.
    statistics_failed: bool,
    map: Option<HintMap<MapMemory>>,
}

impl DeviceHints {
    /// Connects to the device's control socket at `path`.
    ///
    /// # Errors
    /// [`HintError`] if no device answers there, or has another protocol version.
    pub fn connect(path: impl Into<PathBuf>) -> Result<Self, HintError> {
        let path = path.into();
        Ok(Self {
            connection: Some(ControlClient::connect(&path, PATIENCE)?),
            path,
            aside: None,
            statistics_failed: false,
            map: None,
        })
    }

    /// Sends a request. Closes the connection if the device does not answer, because a late answer must not be mistaken
    /// for the answer to the next request. The device then notices the end and tells the guest DONE.
    fn ask(&mut self, request: Request, fd: Option<BorrowedFd<'_>>) -> Result<Reply, HintError> {
        let connection = self.connection.as_mut().ok_or_else(given_up_before)?;
        let result = connection.ask(request, fd);
        if is_fatal(&result) {
            self.connection = None;
        }
        result
    }

    /// As [`DeviceHints::ask`], on a connection of its own: hints do not depend on the answer.
    fn ask_aside(&mut self, request: Request) -> Result<(Reply, Option<OwnedFd>), HintError> {
        if self.statistics_failed {
            return Err(given_up_before().into());
        }
        let mut ask = || {
            let connection = match &mut self.aside {
                Some(connection) => connection,
                none => none.insert(ControlClient::connect(&self.path, STATISTICS_PATIENCE)?),
            };
            connection.ask_for_file(request)
        };
        let result = ask();
        if is_fatal(&result) {
            (self.aside, self.statistics_failed) = (None, true);
        }
        result
    }
}

/// Whether a late answer may still come, which would be mistaken for the answer to the next request.
fn is_fatal<T>(result: &Result<T, HintError>) -> bool {
    matches!(result, Err(HintError::Io(_) | HintError::Protocol(_)))
}

fn given_up_before() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the connection was closed after an error",
    )
}

impl HintSource for DeviceHints {
    fn prepare(&mut self, pages: u64, tellers: Tellers) -> Result<(), HintError> {
        self.map = None;
        (self.aside, self.statistics_failed) = (None, false);
        if self.connection.is_none() {
            self.connection = Some(ControlClient::connect(&self.path, PATIENCE)?);
        }
        let file = MapFile::new(pages)?;
        let request = Request::SetHintMap {
            bytes: file.bytes(),
        };
        match self.ask(request, Some(file.as_fd()))? {
            Reply::Ok => {
                let map = file.into_map();
                map.ask(tellers);
                self.map = Some(map);
                Ok(())
            }
            other => Err(HintError::unexpected(request, other)),
        }
    }

    fn open(&mut self, epoch: u64) -> Result<(), HintError> {
        let request = Request::Open { epoch };
        match self.ask(request, None)? {
            Reply::Opened { .. } => Ok(()),
            other => Err(HintError::unexpected(request, other)),
        }
    }

    fn load(&self, index: usize) -> HintBits {
        let told = self.map.as_ref().map(|map| map.load(index));
        told.unwrap_or_default()
    }

    fn hinted_words(&self, found: &mut dyn FnMut(usize)) {
        if let Some(map) = &self.map {
            map.hinted_words(found);
        }
    }

    fn phase(&self) -> HintPhase {
        self.map.as_ref().map_or(HintPhase::Closed, HintMap::phase)
    }

    fn hinted_pages(&self) -> u64 {
        self.map.as_ref().map_or(0, HintMap::hinted_pages)
    }

    fn answered(&self) -> u64 {
        self.map.as_ref().map_or(0, HintMap::answered)
    }

    fn free_pages(&mut self) -> Option<u64> {
        // A device without statistics is treated like one that does not answer.
        let Ok((Reply::Statistics(statistics), _)) = self.ask_aside(Request::Statistics) else {
            return None;
        };
        let is_new = statistics.age_ms() <= OLDEST_STATISTICS.as_millis() as u64;
        let mut values = statistics.values().iter().filter(|_| is_new);
        values
            .find(|(tag, _)| *tag == stat::FREE_MEMORY)
            .map(|(_, bytes)| bytes / PAGE_SIZE)
    }

    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError> {
        let request = Request::Close { epoch };
        match self.ask(request, None)? {
            Reply::Closed(report) if report.epoch == epoch => Ok(report),
            other => Err(HintError::unexpected(request, other)),
        }
    }

    fn take_all(&mut self, told: &mut dyn FnMut(usize, HintBits)) {
        if let Some(map) = &self.map {
            map.take_all(told);
        }
    }

    fn given_up(
        &mut self,
        set: PageSet,
        memory: &[PageRange],
    ) -> Result<MigrationBitmap, HintError> {
        let request = Request::PageMap(set);
        match self.ask_aside(request)? {
            (Reply::PageMap { bytes }, Some(file)) => given_up::read(file, bytes, memory),
            (other, _) => Err(HintError::unexpected(request, other)),
        }
    }

    fn done(&mut self) -> Result<(), HintError> {
        (self.map, self.aside) = (None, None);
        if self.connection.is_none() {
            // The device has noticed the end and has told the guest DONE.
            return Ok(());
        }
        match self.ask(Request::Done, None)? {
            Reply::Ok => Ok(()),
            other => Err(HintError::unexpected(Request::Done, other)),
        }
    }
}
