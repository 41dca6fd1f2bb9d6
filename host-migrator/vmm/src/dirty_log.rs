// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's dirty log: the pages that the vCPUs wrote.

use std::io;
use std::sync::Arc;

use bitvec::view::BitView;
use host_migrator::{DirtyLog, DirtyLogError, LogSource, MigrationBitmap, Trace};
use spec::PageRange;
use spec::trace::Event;

use crate::slots::MemorySlots;

/// How many words (of 64 pages) one call clears. vCPUs that fault wait for the whole call. 1 GiB of memory takes four
/// calls.
const CHUNK_WORDS: usize = 1024;

/// KVM's log of the vCPUs' writes.
#[derive(Debug)]
pub struct KvmDirtyLog {
    slots: Arc<MemorySlots>,
    /// A buffer for the log of one slot.
    buffer: Vec<u64>,
    trace: Trace,
}

impl KvmDirtyLog {
    /// The log of `slots`. It is off until [`DirtyLog::start`].
    pub fn new(slots: Arc<MemorySlots>) -> Self {
        let words = |pages: &spec::PageRange| pages.count().div_ceil(64) as usize;
        let longest = slots.pages().iter().map(words).max().unwrap_or(0);
        Self {
            slots,
            buffer: vec![0; longest],
            trace: Trace::default(),
        }
    }

    /// This log, which records in `trace` the pages that it arms.
    pub fn recorded(self, trace: &Trace) -> Self {
        Self {
            trace: trace.clone(),
            ..self
        }
    }

    fn harvest_slot(
        &mut self,
        slot: u32,
        first: u64,
        pages: u64,
        into: &MigrationBitmap,
    ) -> io::Result<u64> {
        let log = &mut self.buffer[..pages.div_ceil(64) as usize];
        self.slots.dirty_log(slot, log)?;
        let mut taken = 0;
        for (chunk, bits) in log.chunks(CHUNK_WORDS).enumerate() {
            let base = chunk * CHUNK_WORDS;
            let Some(start) = bits.iter().position(|word| *word != 0) else {
                continue;
            };
            let end = bits
                .iter()
                .rposition(|word| *word != 0)
                .map_or(start, |last| last + 1);
            let clear = &bits[start..end];
            let at = (base + start) as u64;
            self.slots.clear_dirty_log(slot, at * 64, clear)?;
            // Only now, when the pages are protected again. If a sender saw the bits earlier, it could copy a page, and
            // clearing the bit would lose a write after that copy.
            taken += into.insert_bits(first + at * 64, clear.view_bits());
        }
        Ok(taken)
    }
}

impl DirtyLog for KvmDirtyLog {
    fn source(&self) -> LogSource {
        LogSource::Kvm
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        let slots = &self.slots;
        slots
            .set_logging(true)
            .map_err(|e| failed(LogSource::Kvm, "be started", e))?;
        // Every bit is set now (INITIALLY_SET), and a page is protected only when its bit is cleared. Bits of an
        // earlier log that are clear already belong to protected pages.
        let all = [u64::MAX; CHUNK_WORDS];
        for (slot, pages) in (0..).zip(slots.pages()) {
            let words = pages.count().div_ceil(64) as usize;
            for at in (0..words).step_by(CHUNK_WORDS) {
                let count = CHUNK_WORDS.min(words - at);
                slots
                    .clear_dirty_log(slot, at as u64 * 64, &all[..count])
                    .map_err(|e| failed(LogSource::Kvm, "be cleared", e))?;
                let chunk = PageRange::new(pages.first() + at as u64 * 64, count as u64 * 64);
                if let Some(armed) = chunk.and_then(|chunk| chunk.intersection(*pages)) {
                    self.trace.record(Event::Armed(armed));
                }
            }
        }
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        let mut taken = 0;
        let slots = Arc::clone(&self.slots);
        for (slot, pages) in (0..).zip(slots.pages()) {
            taken += self
                .harvest_slot(slot, pages.first(), pages.count(), bitmap)
                .map_err(|e| failed(LogSource::Kvm, "be harvested", e))?;
        }
        Ok(taken)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        let stopped = self.slots.set_logging(false);
        stopped.map_err(|e| failed(LogSource::Kvm, "be stopped", e))
    }
}

fn failed(log: LogSource, action: &'static str, source: io::Error) -> DirtyLogError {
    DirtyLogError {
        log,
        action,
        source,
    }
}
