// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is said to the source: which pages somebody waits for, what is missing after a break, and that nothing is missing any more.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use spec::PageRange;
use spec::stream::{MAX_SECTION_RUNS, SectionKind, run_to_bytes};

use super::file::FileRequests;
use crate::paging::PageRequests;
use crate::wire::SectionError;
use crate::wire::sections::SectionWriter;

/// Who is asked.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// The source, on its first lane.
    Source(SectionWriter),
    /// What the source has left in a file.
    File(FileRequests),
}

/// The way to the source.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// `None` while there is no connection.
    way: Mutex<Option<Way>>,
    /// Nothing is missing any more.
    is_complete: AtomicBool,
}

impl Asking {
    /// From now on this is the `way`.
    pub(super) fn set(&self, way: Option<Way>) {
        *self.way.lock() = way;
        if self.is_complete.load(Ordering::Acquire) {
            self.say_complete();
        }
    }

    /// Nothing is missing any more.
    pub(super) fn complete(&self) {
        self.is_complete.store(true, Ordering::Release);
        self.say_complete();
    }

    fn say_complete(&self) {
        self.say(SectionKind::Complete, &[]);
    }

    /// A connection that takes nothing is noticed by the thread that reads it.
    fn say(&self, kind: SectionKind, payload: &[u8]) {
        let way = self.way.lock().clone();
        if let Some(Way::Source(mut out)) = way
            && let Err(error) = out.section(kind, [payload])
        {
            log::debug!("{kind:?} was not sent: {error}");
        }
    }
}

impl PageRequests for Asking {
    fn ask(&self, page: u64) {
        if let Some(Way::File(file)) = &*self.way.lock() {
            return file.ask(page);
        }
        if let Some(page) = PageRange::new(page, 1) {
            self.say(SectionKind::Request, &run_to_bytes(page));
        }
    }
}

/// Says on `out` which pages are missing.
pub(super) fn say_missing(
    out: &mut SectionWriter,
    missing: &[PageRange],
) -> Result<(), SectionError> {
    let mut say = |runs: &[PageRange]| -> io::Result<()> {
        let table: Vec<u8> = runs.iter().copied().flat_map(run_to_bytes).collect();
        out.section(SectionKind::Missing, [&table])
    };
    missing.chunks(MAX_SECTION_RUNS).try_for_each(&mut say)?;
    Ok(say(&[])?)
}
