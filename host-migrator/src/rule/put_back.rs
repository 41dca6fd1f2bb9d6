// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of a migration for logs and hints: everything is put back as it was.

use spec::trace::Event;

use super::tracker::name;
use crate::panics::attempt;
use crate::report::trace::Trace;
use crate::vm::dirty_log::DirtyLog;
use crate::vm::hint_source::HintSource;

/// Stops all `logs` and tells the guest DONE, after success, failure and cancel alike. A step that fails is logged and does
/// not stop the others.
pub fn put_back(
    logs: &mut [Box<dyn DirtyLog>],
    hints: Option<&mut (dyn HintSource + 'static)>,
    trace: &Trace,
) {
    for (index, log) in logs.iter_mut().enumerate() {
        if attempt("stop a dirty log", || log.stop()).is_none() {
            trace.record(Event::LogStopped(name(index, log.as_ref())));
        }
    }
    if let Some(hints) = hints {
        match attempt("tell the guest DONE", || hints.done()) {
            None => trace.record(Event::Done),
            // The device tells the guest by itself when the migrator's connection ends.
            Some(_) => trace.record(Event::HintsLost),
        }
    }
}
