// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna status --follow`: what a migration does, while it does it.
//!
//! | module | what it is |
//! |---|---|
//! | `screen` | for people at a terminal: figures and the last events, drawn again and again |
//! | `lines` | for logs and pipes: a line for each event that matters, and each second |
//! | `json` | for programs: an object a line |
//! | `rates` | what is sent in a second, from two looks |
//! | `stalls` | what keeps the guest from running |
//! | `words` | an event in words |

mod json;
mod lines;
mod rates;
mod screen;
mod stalls;
mod words;

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use host_migrator::{MigrationEvent, MigrationState};

use crate::args::StatusArgs;
use crate::control::{Client, Command, EventPage, EventsArguments};
use crate::jobs::{JobError, name_of};
use crate::machine::Status;

/// How often the machine is asked.
const POLL: Duration = Duration::from_millis(250);

/// A way to show what was learnt.
trait View {
    /// Shows the `events` since the last call, and the `status` after them.
    fn show(&mut self, events: &EventPage, status: &Status) -> io::Result<()>;
}

/// Shows the migration away from the machine until it has ended. If none has begun, waits for one.
///
/// # Errors
/// [`JobError`] if the machine does not answer, or the migration does not complete.
pub fn follow(args: &StatusArgs) -> Result<(), JobError> {
    let mut client = Client::connect(&args.control)?;
    let mut view: Box<dyn View> = match (args.json, io::stdout().is_terminal()) {
        (true, _) => Box::new(json::Json::new(io::stdout())),
        (false, true) => Box::new(screen::Screen::default()),
        (false, false) => Box::new(lines::Lines::new(io::stdout())),
    };
    let mut known = EventsArguments::default();
    loop {
        let page: EventPage = client.ask(&Command::QueryEvents(known))?;
        let status: Status = client.ask(&Command::Status)?;
        known = page.known(known);
        view.show(&page, &status).map_err(|source| JobError::Io {
            what: "cannot write the answer",
            source,
        })?;
        if let Some((state, why)) = page.events.iter().find_map(|it| end_of(&it.event)) {
            return match state {
                MigrationState::Completed => Ok(()),
                state => Err(JobError::Migration {
                    state: name_of(state),
                    why,
                }),
            };
        }
        if page.events.len() < EventPage::MOST {
            thread::sleep(POLL);
        }
    }
}

/// How the migration has ended, and why, if this `event` is its end.
fn end_of(event: &MigrationEvent) -> Option<(MigrationState, String)> {
    match event {
        MigrationEvent::Migration { status, error_desc } if status.is_over() => {
            let why = error_desc.clone();
            Some((*status, why.unwrap_or_else(|| "no reason given".into())))
        }
        _ => None,
    }
}
