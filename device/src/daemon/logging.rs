// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The log. Each message is one line and names its device, and their number is limited.
//!
//! A guest or a front end can cause any number of messages. So for each device, each line of code may log ten lines at
//! once, and then one a second. That one says how many were left out.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use env_logger::{Builder, Env, Logger};
use log::{Log, Metadata, Record};
use parking_lot::Mutex;

use crate::threads;

/// Lines that one place in the code may log at once.
const BURST: u32 = 10;
/// The time between two lines after that.
const PACE: Duration = Duration::from_secs(1);

/// Logs what `RUST_LOG` says, warnings by default, to standard error.
pub fn init() {
    let logger = Builder::from_env(Env::default().default_filter_or("warn"))
        .format(|out, record| {
            let style = out.default_level_style(record.level());
            write!(
                out,
                "{} {style}{:5}{style:#} ",
                out.timestamp(),
                record.level()
            )?;
            if let Some(device) = threads::device() {
                write!(out, "{device}: ")?;
            }
            // Messages quote bytes from other processes. Without this, those could forge a line of the log.
            let text = record.args().to_string().replace(char::is_control, " ");
            writeln!(out, "{text}")
        })
        .build();
    let most = logger.filter();
    let limited = Limited {
        logger,
        sites: Mutex::default(),
    };
    // This fails if the process has a logger already. That logger stays.
    if log::set_boxed_logger(Box::new(limited)).is_ok() {
        log::set_max_level(most);
    }
}

struct Limited {
    logger: Logger,
    sites: Mutex<HashMap<LogSite, Bucket>>,
}

/// A device, and a file and a line of the program.
type LogSite = (Option<Arc<str>>, &'static str, u32);

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.logger.matches(record) {
            return;
        }
        let (Some(file), Some(line)) = (record.file_static(), record.line()) else {
            return self.logger.log(record);
        };
        let site = (threads::device(), file, line);
        let left_out = {
            let mut sites = self.sites.lock();
            let bucket = sites.entry(site).or_default();
            if !bucket.take(Instant::now()) {
                return;
            }
            std::mem::take(&mut bucket.left_out)
        };
        if left_out == 0 {
            return self.logger.log(record);
        }
        let text = format!("{} ({left_out} more like this)", record.args());
        self.logger.log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{text}"))
                .module_path_static(record.module_path_static())
                .file_static(Some(file))
                .line(Some(line))
                .build(),
        );
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// How many lines one place in the code may still log.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// The time up to which tokens have been added.
    given: Option<Instant>,
    left_out: u64,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            tokens: BURST,
            given: None,
            left_out: 0,
        }
    }
}

impl Bucket {
    /// Whether a line may be written `now`. If not, it is counted.
    fn take(&mut self, now: Instant) -> bool {
        let given = *self.given.get_or_insert(now);
        let due = now.saturating_duration_since(given).as_nanos() / PACE.as_nanos();
        if due != 0 {
            let due = u32::try_from(due).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(due).min(BURST);
            self.given = Some(now);
        }
        match self.tokens.checked_sub(1) {
            Some(left) => self.tokens = left,
            None => self.left_out += 1,
        }
        self.left_out == 0 || due != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_logs_ten_lines_at_once_and_then_one_a_second() {
        let mut bucket = Bucket::default();
        let start = Instant::now();
        let said = |bucket: &mut Bucket, at: Instant| (0..100).filter(|_| bucket.take(at)).count();
        assert_eq!(said(&mut bucket, start), 10);
        assert_eq!(bucket.left_out, 90);
        assert_eq!(said(&mut bucket, start + PACE / 2), 0);
        assert!(bucket.take(start + PACE));
        assert_eq!(std::mem::take(&mut bucket.left_out), 190);
        assert_eq!(said(&mut bucket, start + PACE), 0);
        bucket.left_out = 0;
        assert_eq!(said(&mut bucket, start + 60 * PACE), 10);
    }
}
