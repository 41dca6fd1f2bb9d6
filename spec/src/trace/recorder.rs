// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writing to the shared file.

use super::{
    Actor, Event, FIRST_SLOT_WORD, MAGIC, MAGIC_WORD, Record, SLOT_WORDS, SLOTS_WORD, TAKEN_WORD,
    TraceError, VERSION, VERSION_WORD, bytes_for,
};
use crate::hint_map::Words;
use crate::sync::Ordering;

/// A trace that one part writes to.
#[derive(Debug)]
pub struct Recorder<W> {
    words: W,
    slots: u64,
    host: u16,
}

impl<W: Words> Recorder<W> {
    /// Lays a new trace with `slots` slots out in zeroed memory.
    ///
    /// # Errors
    /// [`TraceError::TooSmall`] if the memory has fewer than [`bytes_for`]`(slots)` bytes.
    pub fn format(words: W, slots: u64) -> Result<(), TraceError> {
        check_size(&words, slots)?;
        let store = |index, value, order| {
            if let Some(word) = words.word(index) {
                word.store(value, order);
            }
        };
        store(SLOTS_WORD, slots, Ordering::Relaxed);
        store(VERSION_WORD, VERSION, Ordering::Relaxed);
        store(MAGIC_WORD, MAGIC, Ordering::Release);
        Ok(())
    }

    /// Opens a trace that has been laid out, to record as a part of `host`.
    ///
    /// # Errors
    /// [`TraceError`] for memory that is no trace, or one that does not fit.
    pub fn open(words: W, host: u16) -> Result<Self, TraceError> {
        let read = |index| words.word(index).map(|word| word.load(Ordering::Acquire));
        let slots = super::reader::slots(read(MAGIC_WORD), read(VERSION_WORD), read(SLOTS_WORD))?;
        check_size(&words, slots)?;
        Ok(Self { words, slots, host })
    }

    /// What has been recorded so far; see [`Reader::records`](super::Reader::records).
    pub fn records(&self) -> impl Iterator<Item = Option<Record>> {
        let taken = self.taken().min(self.slots) as usize;
        (0..taken).map(|slot| {
            let mut words = [0; SLOT_WORDS];
            for (at, value) in words.iter_mut().enumerate() {
                let word = self.words.word(FIRST_SLOT_WORD + slot * SLOT_WORDS + at)?;
                *value = word.load(Ordering::Acquire);
            }
            Record::from_words(words)
        })
    }

    /// Records that found no room.
    pub fn dropped(&self) -> u64 {
        self.taken().saturating_sub(self.slots)
    }

    fn taken(&self) -> u64 {
        let taken = self.words.word(TAKEN_WORD);
        taken.map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Records that `event` happened, as the part `role`. A full trace counts what it drops.
    pub fn record(&self, role: super::Role, event: Event) {
        let Some(taken) = self.words.word(TAKEN_WORD) else {
            return;
        };
        // AcqRel: the taker of a later slot has seen everything that led to this one.
        let slot = taken.fetch_add(1, Ordering::AcqRel);
        if slot >= self.slots {
            return;
        }
        let actor = Actor {
            role,
            host: self.host,
        };
        let first = FIRST_SLOT_WORD + slot as usize * SLOT_WORDS;
        let words = Record { actor, event }.to_words();
        // The head is written last: a slot without one was taken by somebody who died.
        for (at, value) in words.into_iter().enumerate().rev() {
            if let Some(word) = self.words.word(first + at) {
                word.store(value, Ordering::Release);
            }
        }
    }
}

fn check_size<W: Words>(words: &W, slots: u64) -> Result<(), TraceError> {
    let too_small = TraceError::TooSmall { slots };
    let bytes = bytes_for(slots).ok_or(too_small)?;
    let last = usize::try_from(bytes / 8 - 1).map_err(|_| too_small)?;
    words.word(last).map(|_| ()).ok_or(too_small)
}
