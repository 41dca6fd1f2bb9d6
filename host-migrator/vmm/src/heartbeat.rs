// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM's own writes to the bare guest's memory: it stamps a page every few milliseconds.
//!
//! If a migration misses the VMM's own writes, the destination gets an old version of the page, which the guest notices.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use spec::bare::{BOOT_INFO_GPA, BootInfo, HEARTBEAT_GPA, HEARTBEAT_MS};
use spec::stamp::{PAGE_WORDS, Stamp};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::OwnMemory;

/// The thread that stamps the page. It starts paused.
#[derive(Debug)]
pub struct Heartbeat {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Control {
    beat: Mutex<Beat>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Beat {
    #[default]
    Paused,
    Running,
    Ended,
}

impl Heartbeat {
    /// Starts the thread for the guest in `memory`.
    ///
    /// # Errors
    /// The system's, if the thread cannot be started.
    pub fn new(memory: Arc<OwnMemory>) -> io::Result<Self> {
        let control = Arc::new(Control::default());
        let shared = Arc::clone(&control);
        let thread = thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || shared.beat_until_ended(&memory))?;
        Ok(Self {
            control,
            thread: Some(thread),
        })
    }

    /// Goes on from the version in the page.
    pub fn run(&self) {
        self.control.set(Beat::Running);
    }

    /// Pauses. After the return the thread writes nothing.
    pub fn pause(&self) {
        self.control.set(Beat::Paused);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.control.set(Beat::Ended);
        // A thread that panicked has printed why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Control {
    fn set(&self, beat: Beat) {
        // The lock is held during a stamp: with it comes the end of the last one.
        *self.beat.lock() = beat;
        self.changed.notify_all();
    }

    fn beat_until_ended(&self, memory: &OwnMemory) {
        let mut beat = self.beat.lock();
        while *beat != Beat::Ended {
            if *beat == Beat::Paused {
                self.changed.wait(&mut beat);
                continue;
            }
            if let Err(error) = stamp(memory) {
                log::error!("the guest has no heartbeat: {error}");
                return;
            }
            let interval = Duration::from_millis(HEARTBEAT_MS);
            self.changed.wait_for(&mut beat, interval);
        }
    }
}

/// Writes the next version of the page.
fn stamp(memory: &OwnMemory) -> Result<(), GuestMemoryError> {
    let words = read_words::<{ BootInfo::WORDS }>(memory, BOOT_INFO_GPA)?;
    let seed = BootInfo::from_words(words).map_or(0, |info| info.seed);
    let [_, version] = read_words(memory, HEARTBEAT_GPA)?;
    let next = Stamp {
        address: HEARTBEAT_GPA,
        // Versions are never 0.
        version: version.checked_add(1).unwrap_or(1),
    };
    let mut page = [0; PAGE_WORDS];
    next.write(seed, &mut page);
    let bytes: Vec<u8> = page.into_iter().flat_map(u64::to_le_bytes).collect();
    memory.write_slice(&bytes, GuestAddress(HEARTBEAT_GPA))
}

fn read_words<const N: usize>(memory: &OwnMemory, gpa: u64) -> Result<[u64; N], GuestMemoryError> {
    let mut words = [0; N];
    for (at, word) in (gpa..).step_by(8).zip(&mut words) {
        *word = memory.read_obj(GuestAddress(at))?;
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MachineMemory, MemoryOptions};

    fn version(memory: &OwnMemory) -> u64 {
        let page: [u64; PAGE_WORDS] = read_words(memory, HEARTBEAT_GPA).unwrap();
        let stamp = Stamp {
            address: HEARTBEAT_GPA,
            version: page[1],
        };
        assert_eq!(stamp.check(7, &page), Ok(()));
        page[1]
    }

    #[test]
    fn versions_rise_by_one_and_rest_while_paused() {
        let memory = MachineMemory::new(1 << 20, MemoryOptions::default()).unwrap();
        let info = BootInfo {
            seed: 7,
            ..Default::default()
        };
        for (at, word) in (BOOT_INFO_GPA..).step_by(8).zip(info.to_words()) {
            memory.own().write_obj(word, GuestAddress(at)).unwrap();
        }
        stamp(memory.own()).unwrap();
        stamp(memory.own()).unwrap();
        assert_eq!(version(memory.own()), 2);
        let heartbeat = Heartbeat::new(Arc::clone(memory.own())).unwrap();
        heartbeat.run();
        while version_now(memory.own()) < 4 {
            thread::yield_now();
        }
        heartbeat.pause();
        let paused = version(memory.own());
        thread::sleep(Duration::from_millis(5 * HEARTBEAT_MS));
        assert_eq!(version(memory.own()), paused);
    }

    fn version_now(memory: &OwnMemory) -> u64 {
        read_words::<2>(memory, HEARTBEAT_GPA).unwrap()[1]
    }
}
