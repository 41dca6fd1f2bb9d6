// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's status words, which the VMM reads from guest memory.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use spec::bare::{STATUS_GPA, StatusWord};

/// Sets a word.
pub fn set(word: StatusWord, value: u64) {
    cell(word).store(value, Ordering::Relaxed);
}

/// Reads a word back.
pub fn get(word: StatusWord) -> u64 {
    cell(word).load(Ordering::Relaxed)
}

/// Adds to a counter.
pub fn add(word: StatusWord, count: u64) {
    cell(word).fetch_add(count, Ordering::Relaxed);
}

/// Subtracts from a counter.
pub fn subtract(word: StatusWord, count: u64) {
    cell(word).fetch_sub(count, Ordering::Relaxed);
}

/// Publishes the words set so far as valid.
pub fn set_magic() {
    cell(StatusWord::Magic).store(spec::bare::STATUS_MAGIC, Ordering::Release);
}

fn cell(word: StatusWord) -> &'static AtomicU64 {
    let words =
        core::ptr::with_exposed_provenance::<[AtomicU64; StatusWord::COUNT]>(STATUS_GPA as usize);
    // SAFETY: the ABI reserves the page for the status words, memory is mapped one to one, and all access to them is
    // atomic.
    unsafe { &(*words)[word as usize] }
}
