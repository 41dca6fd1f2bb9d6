// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Before a guest is handed over at once, it is asked which pages are free: these are not promised.

use std::thread;
use std::time::{Duration, Instant};

use spec::hint_map::HintPhase;

use crate::rule::Epoch;
use crate::sink::Sink;
use crate::source::error::MigrationError;
use crate::source::outgoing::NAP;
use crate::source::sender::Sender;

/// A guest that has said nothing new for so long is not waited for.
const QUIET: Duration = Duration::from_millis(50);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);

/// Waits for the hints of `epoch` and leaves out the pages that they name. No page is sent.
pub(crate) fn collect<'t, 'l, S: Sink>(
    sender: &mut Sender<'_, S>,
    epoch: Epoch<'t, 'l>,
) -> Result<Epoch<'t, 'l>, MigrationError> {
    let began = Instant::now();
    let (mut seen, mut since) = (0, began);
    loop {
        let (phase, hinted) = epoch.pass().guest();
        if hinted != seen {
            (seen, since) = (hinted, Instant::now());
        }
        let waits = matches!(phase, HintPhase::Requested | HintPhase::Running);
        if !waits || since.elapsed() > QUIET || began.elapsed() > LONGEST {
            break;
        }
        sender.out.check()?;
        thread::sleep(NAP);
    }
    sender.walk.skip_hinted(&epoch.pass());
    sender.flush(&epoch.pass())?;
    Ok(epoch)
}
