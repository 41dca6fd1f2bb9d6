// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Plain lines: one for each event that matters, and one each second with the figures.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use host_migrator::{MigrationEvent, MigrationStatus};
use spec::PAGE_SIZE;

use super::rates::Rate;
use super::stalls::Stalls;
use super::{View, words};
use crate::control::EventPage;
use crate::jobs::name_of;
use crate::machine::Status;
use crate::size::Size;
use crate::waits;

/// How often there is a line with the figures.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Lines<W> {
    out: W,
    told: Option<Instant>,
    rate: Rate,
    stalls: Stalls,
}

impl<W> Lines<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            told: None,
            rate: Rate::default(),
            stalls: Stalls::default(),
        }
    }
}

impl<W: Write> View for Lines<W> {
    fn show(&mut self, events: &EventPage, status: &Status) -> io::Result<()> {
        for event in &events.events {
            // The figures say how many rounds and harvests there were.
            if !matches!(
                event.event,
                MigrationEvent::MigrationPass { .. } | MigrationEvent::DirtySync { .. }
            ) {
                writeln!(self.out, "{}", words::of(event))?;
            }
        }
        let is_due = self.told.is_none_or(|told| told.elapsed() >= INTERVAL);
        let migration = &status.migration;
        if is_due || migration.status.is_over() {
            self.told = Some(Instant::now());
            match events.migration {
                0 => {
                    let waits = waits::of_machine(status);
                    let waits = waits.unwrap_or_else(|| "no migration yet".into());
                    writeln!(self.out, "{}; {waits}", name_of(status.machine))?;
                }
                _ => {
                    self.stalls.look(Instant::now(), status);
                    let text = figures(migration, self.rate.look(migration));
                    let stalls = self.stalls.words(status);
                    let stalls =
                        stalls.map_or_else(String::new, |words| format!("; guest: {words}"));
                    writeln!(self.out, "{text}{stalls}")?;
                }
            }
        }
        self.out.flush()
    }
}

fn figures(migration: &MigrationStatus, rate: u64) -> String {
    let ram = &migration.ram;
    let mut text = format!(
        "{:7.1} s  round {}, {} to go, {} sent, {}/s, {}/s dirtied",
        migration.total_time as f64 / 1000.0,
        migration.round,
        Size(ram.remaining),
        Size(ram.transferred),
        Size(rate),
        Size(ram.dirty_pages_rate * PAGE_SIZE)
    );
    if migration.cpu_throttle_percentage > 0 {
        text += &format!(", throttled by {} %", migration.cpu_throttle_percentage);
    }
    if migration.hints.skipped > 0 {
        text += &format!(", {} skipped", Size(migration.hints.skipped * PAGE_SIZE));
    }
    if migration.status.is_over() {
        text += &format!(", downtime {} ms", migration.downtime);
    } else if let Some(expected) = migration.expected_downtime {
        text += &format!(", downtime would be {expected} ms");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_matters_now() {
        let mut status = MigrationStatus::default();
        status.total_time = 2500;
        status.round = 2;
        (status.ram.remaining, status.ram.transferred) = (5 << 20, 1 << 30);
        status.ram.dirty_pages_rate = 256;
        assert_eq!(
            figures(&status, 2 << 20),
            "    2.5 s  round 2, 5.00 MiB to go, 1.00 GiB sent, 2.00 MiB/s, 1.00 MiB/s dirtied"
        );
        status.cpu_throttle_percentage = 20;
        status.hints.skipped = 512;
        status.expected_downtime = Some(7);
        let text = figures(&status, 0);
        let end = ", throttled by 20 %, 2.00 MiB skipped, downtime would be 7 ms";
        assert!(text.ends_with(end), "{text}");
    }
}
