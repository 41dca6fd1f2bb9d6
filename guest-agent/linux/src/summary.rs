// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A summary for people of what the agent would report now: how much is free, the lengths of the runs, and what the kernel
//! does with free pages.

use std::fmt;
use std::io::{self, Write};

use spec::agent::Settings;

use crate::free_pages::{FreePages, parts};
use crate::memory;
use crate::preparation::Preparation;
use crate::session::SessionError;
use crate::settings;

/// Prints the summary to standard output.
///
/// # Errors
/// If page flags cannot be read, or standard output not written.
pub fn print() -> Result<(), SessionError> {
    let summary = Summary::of_this_machine().map_err(SessionError::PageFlags)?;
    let settings = settings::detect(Preparation::default());
    Ok(write!(io::stdout(), "{summary}{}", of_kernel(settings))?)
}

/// Lines that say what the kernel does with free pages.
fn of_kernel(settings: Settings) -> String {
    let lines = [
        (
            Settings::INIT_ON_ALLOC,
            "they are zeroed when they are allocated",
        ),
        (
            Settings::INIT_ON_FREE,
            "they are zeroed when they are freed",
        ),
        (
            Settings::POISON,
            "they are filled with a pattern that is checked, so the host sends them all",
        ),
        (
            Settings::UNKNOWN,
            "it is not known what the kernel does with them, so the host sends them all",
        ),
    ];
    let set = lines.iter().filter(|(flag, _)| settings.flags & flag != 0);
    set.map(|(_, line)| format!("{line}\n")).collect()
}

/// Free pages, counted by the length of their run.
#[derive(Debug)]
struct Summary {
    /// Pages whose flags were read, including gaps in memory.
    known: u64,
    /// Pages in runs of at least `1 << index` pages and fewer than twice as many.
    by_length: [u64; 64],
    /// Length of the current run.
    run: u64,
}

impl Summary {
    fn of_this_machine() -> io::Result<Self> {
        let mut summary = Self {
            known: 0,
            by_length: [0; 64],
            run: 0,
        };
        let mut pages = FreePages::open()?;
        for zone in memory::zones()? {
            for part in parts(zone) {
                let (words, _) = pages.read(part)?;
                for page in 0..part.count() as usize {
                    summary.add(words[page / 64] >> (page % 64) & 1 == 1);
                }
            }
            summary.end_run();
        }
        Ok(summary)
    }

    fn add(&mut self, is_free: bool) {
        self.known += 1;
        if is_free {
            self.run += 1;
        } else {
            self.end_run();
        }
    }

    fn end_run(&mut self) {
        if let Some(power) = self.run.checked_ilog2() {
            self.by_length[power as usize] += self.run;
            self.run = 0;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free: u64 = self.by_length.iter().sum();
        let (known, mebibytes) = (self.known, free >> 8);
        writeln!(
            f,
            "{free} of {known} pages are free ({mebibytes} MiB), in runs of"
        )?;
        for (power, pages) in self.by_length.iter().enumerate() {
            if *pages != 0 {
                writeln!(f, "{:>9} pages or more: {pages} pages", 1u64 << power)?;
            }
        }
        Ok(())
    }
}
