// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that comes out of a snapshot file, with its memory or before it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use host_migrator::destination::{LazyRestore, RestoreReport, restore, restore_lazily};
use host_migrator::paging::{
    Paging, PagingError, PagingEvent, PagingOptions, Prefault, TouchRecorder, read_touched,
    touched_path,
};
use host_migrator::{DestinationMachine, Snapshot, SourceMachine};
use parking_lot::Mutex;

use super::arriving::Arriving;
use super::process::Process;
use super::status::RestoreStatus;
use super::{ProcessError, milliseconds};

/// How a guest is restored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restore {
    /// When the command began.
    pub(super) began: Instant,
    /// Threads that read the file.
    pub(super) threads: NonZeroUsize,
    /// The guest runs before its memory was read, which goes on at this pace.
    pub(super) lazy: Option<Prefault>,
    /// Which pages the guest touches is written down for the next restore.
    pub(super) record: bool,
}

impl Restore {
    /// The list of touched pages beside `snapshot` is used, or written anew. Without one the guest is restored just as well.
    fn paging(self, snapshot: &Snapshot) -> PagingOptions {
        let (path, id) = (touched_path(snapshot.path()), snapshot.header().id);
        let said = |error: &std::io::Error| log::warn!("{}: {error}", path.display());
        let mut options = PagingOptions {
            threads: self.threads,
            ..PagingOptions::default()
        };
        if self.record {
            options.touches = TouchRecorder::create(&path, id).inspect_err(said).ok();
        } else {
            let listed = read_touched(&path, id, snapshot.commit().pages);
            options.first = listed.inspect_err(said).unwrap_or_default();
        }
        options
    }
}

/// What is known of a restore.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_missing: bool,
    report: Option<(RestoreReport, f64)>,
    paging: Option<Paging>,
}

impl Restoring {
    /// Whether parts of the guest's memory are not here yet.
    pub(super) fn set_missing(&self, is_missing: bool) {
        self.state.lock().is_missing = is_missing;
    }

    /// # Errors
    /// A sentence, if the guest cannot leave because parts of its memory are not here yet.
    pub(super) fn may_leave(&self) -> Result<(), String> {
        let state = self.state.lock();
        if !state.is_missing {
            return Ok(());
        }
        let pages = state.paging.as_ref().map(|paging| paging.status().missing);
        Err(format!(
            "the guest's memory is still coming{}: wait until `lacuna status` shows that it is all here",
            pages.map_or(String::new(), |pages| format!(
                ", and {pages} pages are missing"
            ))
        ))
    }

    /// For `lacuna status`; `None` if the guest was not restored.
    pub(super) fn status(&self) -> Option<RestoreStatus> {
        let state = self.state.lock();
        let (report, first_instruction_ms) = state.report?;
        Some(RestoreStatus {
            pages: report.pages,
            memory_ms: report.memory_ms,
            load_ms: report.load_ms,
            total_ms: report.total_ms,
            first_instruction_ms,
            lazy: state.paging.as_ref().map(Paging::status),
        })
    }
}

impl Process {
    /// Restores the guest of `snapshot`, and runs or holds it.
    pub(super) fn restore(
        self: &Arc<Self>,
        snapshot: Snapshot,
        how: Restore,
    ) -> Result<RestoreReport, ProcessError> {
        let (ram, mut machine) = (self.ram(), Arriving(self));
        let path = snapshot.path().to_owned();
        let (paging, report) = match how.lazy {
            None => {
                let loaded = &|_| ();
                let ownership = self.ownership();
                let report = restore(
                    &snapshot,
                    &*ram,
                    &mut machine,
                    ownership,
                    how.threads,
                    loaded,
                )?;
                (None, report)
            }
            Some(prefault) => {
                self.restoring().set_missing(true);
                let process = Arc::clone(self);
                let told = move |event| process.paging_has(event);
                let lazy = LazyRestore {
                    paging: how.paging(&snapshot),
                    prefault,
                };
                let (paging, report) = restore_lazily(
                    &Arc::new(snapshot),
                    &*ram,
                    &mut machine,
                    self.ownership(),
                    lazy,
                    Box::new(told),
                )?;
                (Some(paging), report)
            }
        };
        let first_instruction_ms = milliseconds(how.began);
        log::info!("restored from {}: {report:?}", path.display());
        let mut state = self.restoring().state.lock();
        state.report = Some((report, first_instruction_ms));
        state.paging = paging;
        Ok(report)
    }

    /// Called in a thread that brings pages.
    fn paging_has(self: &Arc<Self>, event: PagingEvent) {
        match event {
            PagingEvent::Complete => self.all_memory_came(),
            PagingEvent::Failed(error) => self.page_cannot_come(error),
            event => log::warn!("{event:?}"),
        }
    }

    /// Nothing is missing any more. Called in a thread that brings pages.
    pub(super) fn all_memory_came(self: &Arc<Self>) {
        self.apart(|process| {
            process.machine().lock().memory_is_there();
            process.restoring().set_missing(false);
        });
    }

    /// A page cannot be placed for which somebody waits. Called in a thread that brings pages.
    pub(super) fn page_cannot_come(self: &Arc<Self>, error: PagingError) {
        self.apart(move |process| {
            process.guest_has_ended(&error.to_string());
            if let Err(error) = process.machine().clone().stop_vcpus() {
                log::error!("{error}");
            }
        });
    }

    /// Does `work` in a thread of its own: a thread that brings pages must not wait for the machine, because who has it may wait for a
    /// page.
    fn apart(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let process = Arc::clone(self);
        let thread = thread::Builder::new().name("restored".into());
        if let Err(error) = thread.spawn(move || work(&process)) {
            log::error!("a thread cannot be started while memory comes: {error}");
        }
    }
}
