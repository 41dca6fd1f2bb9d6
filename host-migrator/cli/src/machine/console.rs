// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's console: passed on for people, and read for the reports of the Linux test guest.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Deserialize;

use super::GuestStatus;

/// What the Linux test guest's reports start with; a JSON object follows.
const REPORT_PREFIX: &str = "lacuna-guest: ";
/// A longer line is passed on but not read for reports, because the guest may write anything.
const MAX_LINE: usize = 4096;

/// The last report on a console; shared with the threads that answer `status`.
pub type LastReport = Arc<Mutex<Option<Report>>>;

/// A report of the Linux test guest.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", default)]
pub struct Report {
    /// What every guest reports.
    #[serde(flatten)]
    pub status: GuestStatus,
    /// Memory that its kernel reports as free. All other memory is in use.
    pub free_bytes: u64,
    /// Nanoseconds since 1970, by its wall clock.
    pub realtime: Option<u64>,
}

impl Report {
    /// Compares its wall clock with this host's.
    fn with_clock_compared(mut self) -> Self {
        let here = SystemTime::now().duration_since(UNIX_EPOCH);
        self.status.clock_behind_ms = here.ok().zip(self.realtime).map(|(here, there)| {
            let milliseconds = |nanoseconds: u128| (nanoseconds / 1_000_000) as i64;
            milliseconds(here.as_nanos()) - milliseconds(there.into())
        });
        self
    }
}

/// Passes the console on to `out` and reads the guest's reports from it.
#[derive(Debug)]
pub struct Console<W> {
    out: W,
    line: Vec<u8>,
    report: LastReport,
}

impl<W: Write> Console<W> {
    /// A console that goes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            line: Vec::new(),
            report: LastReport::default(),
        }
    }

    /// The guest's last report.
    pub fn report(&self) -> LastReport {
        Arc::clone(&self.report)
    }

    fn end_of_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        // The kernel may write into the middle of a line. Such a report is not valid JSON and is dropped.
        let report = line
            .split_once(REPORT_PREFIX)
            .and_then(|(_, json)| serde_json::from_str::<Report>(json.trim()).ok());
        if let Some(report) = report {
            *self.report.lock() = Some(report.with_clock_compared());
        }
        self.line.clear();
    }
}

impl<W: Write> Write for Console<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The reports first: passing the bytes on may block or fail.
        for byte in bytes {
            if *byte == b'\n' {
                self.end_of_line();
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            }
        }
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_however_the_console_is_cut() {
        let mut console = Console::new(Vec::new());
        let report = console.report();
        let text = b"[    1.0] booting\r\nlacuna-guest: {\"ready\": true, \"checks\": 7, \"free-bytes\": 9}\r\nmore";
        for byte in text {
            console.write_all(&[*byte]).unwrap();
        }
        assert_eq!(console.out, text);
        let report = report.lock().clone().unwrap();
        assert_eq!((report.status.checks, report.free_bytes), (7, 9));
        assert!(report.status.ready);
        assert_eq!(report.status.clock_behind_ms, None);
    }

    #[test]
    fn a_guests_wall_clock_is_compared_with_the_hosts() {
        let mut console = Console::new(io::sink());
        let report = console.report();
        let behind = |realtime: u64, console: &mut Console<io::Sink>| {
            writeln!(console, "lacuna-guest: {{\"realtime\": {realtime}}}").unwrap();
            let report = report.lock().clone().unwrap();
            report.status.clock_behind_ms.unwrap()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = now.as_nanos() as u64;
        // It is compared after it was read, and a century is longer than any test.
        let century = 100 * 365 * 24 * 3600 * 1000;
        assert!((0..century).contains(&behind(now, &mut console)));
        assert!(behind(now + 2 * century as u64 * 1_000_000, &mut console) < -century);
        assert!(behind(u64::MAX, &mut console) < -century);
    }

    #[test]
    fn a_line_without_end_costs_no_memory_and_garbage_is_passed_over() {
        let mut console = Console::new(io::sink());
        let report = console.report();
        console.write_all(&vec![b'x'; 10 * MAX_LINE]).unwrap();
        assert!(console.line.len() <= MAX_LINE);
        console
            .write_all(b"\nlacuna-guest: {broken\n\xff\xfe\n")
            .unwrap();
        assert!(report.lock().is_none());
    }
}
