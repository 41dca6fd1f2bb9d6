// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An object a line: the events as the machine tells them, and each second a `STATUS` with all of the migration's figures.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::View;
use crate::control::EventPage;
use crate::machine::Status;

/// How often the status is told.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Json<W> {
    out: W,
    told: Option<Instant>,
}

impl<W> Json<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, told: None }
    }
}

impl<W: Write> View for Json<W> {
    fn show(&mut self, events: &EventPage, status: &Status) -> io::Result<()> {
        for event in &events.events {
            writeln!(self.out, "{}", serde_json::to_string(event)?)?;
        }
        let migration = &status.migration;
        let is_due = self.told.is_none_or(|told| told.elapsed() >= INTERVAL);
        if events.migration > 0 && (is_due || migration.status.is_over()) {
            self.told = Some(Instant::now());
            let line = json!({"event": "STATUS", "ms": migration.total_time, "data": migration});
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }
}
