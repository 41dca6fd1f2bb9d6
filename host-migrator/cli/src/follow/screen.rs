// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A screen that is drawn again and again: the figures with their course over the last looks, and the last events.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Instant;

use host_migrator::{MigrationStatus, TimedEvent};
use spec::PAGE_SIZE;

use super::rates::Rate;
use super::stalls::Stalls;
use super::{View, words};
use crate::control::EventPage;
use crate::figures::bar;
use crate::jobs::name_of;
use crate::machine::Status;
use crate::size::Size;
use crate::{terminal, waits};

/// How many looks the curves show.
const LOOKS: usize = 48;
/// How many events are shown.
const EVENTS: usize = 8;
/// Columns of the bar of what remains.
const BAR: usize = LOOKS;

/// The screen, and what it remembers.
#[derive(Default)]
pub(super) struct Screen {
    rate: Rate,
    sent: Curve,
    dirtied: Curve,
    throttle: Curve,
    stalls: Stalls,
    events: VecDeque<TimedEvent>,
    /// Lines of the last drawing.
    drawn: usize,
}

impl View for Screen {
    fn show(&mut self, events: &EventPage, status: &Status) -> io::Result<()> {
        self.take(events, &status.migration);
        self.stalls.look(Instant::now(), status);
        let mut lines = match events.migration {
            0 => vec![format!("{}; no migration yet", name_of(status.machine))],
            _ => self.lines(&status.migration, self.stalls.words(status)),
        };
        lines.extend(waits::of_machine(status));
        let width = terminal::width();
        let mut text = String::new();
        if self.drawn > 0 {
            text += &format!("\x1b[{}A\r", self.drawn);
        }
        // The cursor is on the line below; what an older, longer drawing has left there goes.
        for line in &lines {
            text.extend(line.chars().take(width - 1));
            text += "\x1b[K\n";
        }
        text += "\x1b[J";
        self.drawn = lines.len();
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Screen {
    fn take(&mut self, page: &EventPage, migration: &MigrationStatus) {
        for event in &page.events {
            if event.number == 1 {
                self.events.clear();
            }
            if self.events.len() == EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(event.clone());
        }
        self.sent.add(self.rate.look(migration));
        self.dirtied.add(migration.ram.dirty_pages_rate * PAGE_SIZE);
        self.throttle.add(migration.cpu_throttle_percentage.into());
    }

    fn lines(&self, migration: &MigrationStatus, stalls: Option<String>) -> Vec<String> {
        let (ram, hints) = (&migration.ram, &migration.hints);
        let left = ram.remaining as f64 / ram.total.max(1) as f64;
        let bar = match ram.remaining {
            0 => String::new(),
            _ => bar((left * (BAR * 8) as f64).round() as usize),
        };
        let mut lines = vec![
            format!(
                "migration  {}{}, round {}, {} harvests, {:.1} s",
                name_of(migration.status),
                if migration.tls { ", with TLS" } else { "" },
                migration.round,
                ram.dirty_sync_count,
                migration.total_time as f64 / 1000.0
            ),
            format!(
                "to go      {bar:BAR$}  {} of {}",
                Size(ram.remaining),
                Size(ram.total)
            ),
            format!(
                "sent       {:LOOKS$}  {}/s, {} in all",
                self.sent.draw(),
                Size(self.sent.last()),
                Size(ram.transferred)
            ),
            format!(
                "dirtied    {:LOOKS$}  {}/s",
                self.dirtied.draw(),
                Size(self.dirtied.last())
            ),
            format!(
                "throttle   {:LOOKS$}  {} %",
                self.throttle.draw(),
                self.throttle.last()
            ),
            format!(
                "hints      {} skipped, {} too late, {} discarded, {} epochs, held back {} ms{}",
                Size(hints.skipped * PAGE_SIZE),
                Size(hints.too_late * PAGE_SIZE),
                Size(hints.discarded * PAGE_SIZE),
                hints.epochs,
                hints.held_back,
                (hints.lost.as_ref()).map_or_else(String::new, |why| format!("; lost: {why}"))
            ),
            match (migration.status.is_over(), migration.expected_downtime) {
                (true, _) => format!("downtime   {} ms", migration.downtime),
                (false, Some(ms)) => format!("downtime   {ms} ms, if the guest were stopped now"),
                (false, None) => "downtime   not known before the link was measured".into(),
            },
        ];
        lines.extend(stalls.map(|words| format!("guest      {words}")));
        lines.push(String::new());
        lines.extend(self.events.iter().map(words::of));
        lines
    }
}

/// The course of a value.
#[derive(Default)]
struct Curve(VecDeque<u64>);

impl Curve {
    fn add(&mut self, value: u64) {
        if self.0.len() == LOOKS {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    fn last(&self) -> u64 {
        self.0.back().copied().unwrap_or_default()
    }

    /// A character for each value, the highest for the greatest.
    fn draw(&self) -> String {
        const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let most = self.0.iter().copied().max().unwrap_or_default().max(1);
        let level = |value: &u64| (*value as f64 / most as f64 * 7.0).round() as usize;
        self.0.iter().map(|value| LEVELS[level(value)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_migrator::MigrationEvent;

    #[test]
    fn the_screen_shows_the_figures_and_the_last_events() {
        let mut screen = Screen::default();
        let mut status = MigrationStatus::default();
        (status.ram.total, status.ram.remaining) = (4 << 20, 1 << 20);
        let event = |number: u64| TimedEvent {
            number,
            ms: number * 100,
            timestamp: Default::default(),
            event: MigrationEvent::CpuThrottle {
                percentage: number as u8,
            },
        };
        let page = EventPage {
            migration: 1,
            events: (1..=20).map(event).collect(),
        };
        for step in 0..3u8 {
            status.total_time += 1000;
            status.ram.transferred += u64::from(step) << 20;
            status.cpu_throttle_percentage = step * 10;
            screen.take(&page, &status);
        }
        let text = screen.lines(&status, None).join("\n");
        assert!(text.contains(&"█".repeat(BAR / 4)), "{text}");
        assert!(text.contains("▁▅█"), "{text}");
        assert!(text.contains("2.00 MiB/s, 3.00 MiB in all"), "{text}");
        assert!(text.contains("throttled by 20 %"), "{text}");
        assert!(!text.contains("throttled by 12 %"), "only the last: {text}");
    }
}
