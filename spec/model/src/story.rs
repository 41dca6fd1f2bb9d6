// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A path to a broken property, as a story in plain words.

use crate::device::{Command, Control, DeviceAction, Message};
use crate::guest::GuestAction;
use crate::host::{HostAction, Step};
use crate::network::{Forward, NetworkAction};
use crate::operator::OperatorAction;
use crate::pages::{ModelPages, Page};
use crate::properties;
use crate::search::shortest;
use crate::state::{Action, Migration, State};
use crate::told::Told;

/// The shortest path to a broken property.
pub type Story = Told<Action>;

/// What a search has found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// How many different states were visited.
    pub states: usize,
    /// Steps of the longest path.
    pub depth: usize,
    /// The shortest path to a broken property; `None` if all states were visited and every property holds.
    pub story: Option<Story>,
}

impl Migration {
    /// Looks for the shortest path to a state that breaks `property`.
    pub fn look_for_story(self, property: &'static str) -> Findings {
        let found = shortest(self, property);
        Findings {
            states: found.states,
            depth: found.depth,
            story: found.path.map(|path| {
                Told::new::<Self>(
                    property,
                    &path,
                    |before, action, after| sentence(&self, before, action, after),
                    |last| moral(&self, property, last),
                )
            }),
        }
    }
}

/// What `action` did between `before` and `after`.
pub(crate) fn sentence(model: &Migration, before: &State, action: Action, after: &State) -> String {
    let version = |page: Page| format!("version {}", after.guest.version[page.index()]);
    match action {
        Action::Guest(action) => {
            let armed = before.logs.kvm.armed.minus(after.logs.kvm.armed);
            let lost = armed.minus(after.logs.kvm.all());
            let text = of_guest(before, action, after);
            match lost.is_empty() {
                true => text,
                false => format!("{text} Its vCPU's ring is full, and gets no entry."),
            }
        }
        Action::Device(action) => of_device(before, action, after),
        Action::BackEndWrites(page) => {
            format!(
                "A vhost-user back end writes {} into {page}.",
                version(page)
            )
        }
        Action::RingIsEmptied => {
            let (taken, kept) = (before.logs.kvm.ring, after.logs.kvm.dirty);
            let and = if taken.minus(kept).is_empty() {
                "the log keeps"
            } else {
                "nobody keeps"
            };
            format!(
                "The vCPU's ring is emptied, and its pages are protected again: {and} {}.",
                pages(taken)
            )
        }
        Action::BackEndLogs => "The back end logs what it has written.".into(),
        Action::VmmWrites(page) => format!("The VMM writes {} into {page}.", version(page)),
        Action::Host(action) => of_host(model, before, action, after),
        Action::Network(action) => of_network(before, action, after),
        Action::Operator(action) => of_operator(action).into(),
    }
}

fn of_guest(before: &State, action: GuestAction, after: &State) -> String {
    let version = |page: Page| after.guest.version[page.index()];
    match action {
        GuestAction::Write(page) => {
            format!("The guest writes version {} into {page}.", version(page))
        }
        GuestAction::Free(page) => format!("The guest frees {page}."),
        GuestAction::Take(page) => {
            format!(
                "The guest reuses {page} and writes version {}.",
                version(page)
            )
        }
        GuestAction::TakeZeroed(page) => {
            format!("The guest reuses {page} and relies on its being zero.")
        }
        GuestAction::ReadCommand => match after.guest.driver.read {
            Command::Start(id) if before.guest.driver.active == id => {
                format!("The driver reads id {id}, which it has answered already.")
            }
            Command::Start(id) => format!("The driver reads id {id} and queues its answer."),
            Command::Stop => "The driver reads STOP.".into(),
            Command::Done => "The driver reads DONE and gives its pages back.".into(),
        },
        GuestAction::Hint(page) => {
            format!("The driver allocates the free {page} and queues a hint.")
        }
        GuestAction::EndRound => "The driver queues STOP: it has hinted all it can.".into(),
        GuestAction::Release(page) => {
            format!("The driver releases {page} under memory pressure, without telling the device.")
        }
        GuestAction::Report(page) => {
            format!("The guest reports {page}, and the device discards its memory.")
        }
        GuestAction::AgentHears => {
            format!(
                "The agent is asked for its map under id {}.",
                after.guest.agent.asked
            )
        }
        GuestAction::AgentLooks(page) => format!("The agent sees that {page} is free."),
        GuestAction::AgentSends => {
            let id = after.device.frame.map_or(0, |frame| frame.id);
            format!("The agent sends its map under id {id}.")
        }
    }
}

fn of_device(before: &State, action: DeviceAction, after: &State) -> String {
    match action {
        DeviceAction::TakeBuffer => match before.device.queue.first() {
            Some(Message::Hint(page)) if after.device.map == before.device.map => {
                format!("The device takes the hint of {page} from the queue and drops it.")
            }
            Some(Message::Hint(page)) => {
                let mut text = format!(
                    "The device takes the hint of {page} from the queue and puts {} into the map",
                    pages(after.device.map.minus(before.device.map))
                );
                if after.logs.kvm.armed != before.logs.kvm.armed {
                    text += "; it clears the page's dirty bit in KVM's log";
                }
                if after.memory != before.memory {
                    text += "; it discards the page's memory";
                }
                text + "."
            }
            Some(Message::Start(id)) => format!("The device takes the driver's answer to id {id}."),
            Some(Message::Stop) | None => "The device takes the driver's STOP.".into(),
        },
        DeviceAction::TakeFrame if after.device.map == before.device.map => {
            "The device takes the agent's map and drops it.".into()
        }
        DeviceAction::TakeFrame => format!(
            "The device takes the agent's map: {} is free.",
            pages(after.device.map.minus(before.device.map))
        ),
        DeviceAction::Answer => match before.device.control {
            Control::Open(epoch) => format!(
                "The device opens epoch {epoch} and publishes id {}.",
                after.device.id
            ),
            Control::Close(epoch) if after.device.control == Control::Ok => {
                format!("The device empties the queue, closes epoch {epoch} and publishes STOP.")
            }
            Control::Done => "The device publishes DONE.".into(),
            Control::HungUp => {
                "The device notices that the migrator has hung up, and publishes DONE.".into()
            }
            _ => "The device refuses.".into(),
        },
        DeviceAction::Restart => "The device dies and is restarted.".into(),
    }
}

fn of_host(model: &Migration, before: &State, action: HostAction, after: &State) -> String {
    match action {
        HostAction::StartLogging if after.logs.kvm.fetched.is_empty() => {
            "The migrator starts the dirty logs and arms every page.".into()
        }
        HostAction::StartLogging => {
            "The migrator starts the dirty logs; no page is armed yet.".into()
        }
        HostAction::Lend => "The migrator lends the destination the memory itself.".into(),
        HostAction::ClearLog => format!(
            "The migrator clears in KVM's log what it has read: {}.",
            pages(before.logs.kvm.fetched)
        ),
        HostAction::ClearLogOf(page) => format!("The migrator clears {page} in KVM's log."),
        HostAction::Begin if after.host.step == Step::Opening => {
            format!(
                "The migrator asks the device to open epoch {}.",
                after.host.epoch
            )
        }
        HostAction::Begin if after.host.holes != before.host.holes => {
            format!(
                "The migrator asks for holes, finds {}, and begins to send.",
                pages(after.host.holes)
            )
        }
        HostAction::Begin => "The migrator goes on sending.".into(),
        HostAction::HearDevice if before.device.control == Control::Refused => {
            "The migrator is refused, and goes on without hints.".into()
        }
        HostAction::HearDevice => match before.host.step {
            Step::Opening => "The device's answer reaches the migrator: the epoch is open.".into(),
            Step::Closing => {
                "The device's answer reaches the migrator: the epoch is closed.".into()
            }
            _ => "The device's answer reaches the migrator: the guest was told DONE.".into(),
        },
        HostAction::GiveUpDevice => {
            "The migrator stops waiting for the device and goes on without hints.".into()
        }
        HostAction::Claim(page) if before.host.copied.has(page) => {
            format!("The migrator takes {page} out of the bitmap.")
        }
        HostAction::Claim(page) if after.host.claimed.has(page) => {
            format!("The migrator claims {page}.")
        }
        HostAction::Claim(page) if before.host.holes.has(page) => {
            format!("The migrator still takes {page} for a hole, and sends no content.")
        }
        HostAction::Claim(page) => {
            let discards = before.host.sent.has(page) && !after.host.sent.has(page);
            let and = if discards {
                ", and tells the destination to discard it"
            } else {
                ""
            };
            format!("The migrator skips {page}: it is hinted{and}.")
        }
        HostAction::Send(page, channel) => {
            let what = match before.memory[page.index()] {
                0 => "a page of zeros".into(),
                version => format!("version {version}"),
            };
            let on = match (model.setup.channels, channel) {
                (1, _) => "",
                (_, 0) => " on channel 1",
                _ => " on channel 2",
            };
            format!("The migrator sends {page}, {what}{on}.")
        }
        HostAction::Flush => {
            let zero = pages(before.host.table.minus(after.host.table));
            format!("The migrator flushes its table: {zero} is to become zero at the destination.")
        }
        HostAction::DiscardLate(page) => {
            let since = if before.device.map.has(page) {
                "was sent and is hinted now"
            } else {
                "had been sent and hinted before the harvest"
            };
            format!("The migrator tells the destination to discard {page}, which {since}.")
        }
        HostAction::EndRound => format!("The migrator has sent the round{}.", closing(after)),
        HostAction::HarvestInBackground => {
            format!(
                "The migrator begins a harvest in mid-round{}.",
                closing(after)
            )
        }
        HostAction::ReadLogEarly => {
            format!(
                "The migrator harvests early and reads KVM's log: {}.",
                pages(before.logs.kvm.all())
            )
        }
        HostAction::ReadLog => {
            format!(
                "The migrator reads KVM's log: {}.",
                pages(before.logs.kvm.all())
            )
        }
        HostAction::HarvestBackEnd => log_taken(
            "the back end's log",
            before.logs.back_end,
            after.logs.back_end,
        ),
        HostAction::HarvestOwnWrites => {
            log_taken("the VMM's own log", before.logs.own, after.logs.own)
        }
        HostAction::Pause => "The migrator pauses the guest.".into(),
        HostAction::Commit => "The migrator tells the destination that everything was sent.".into(),
        HostAction::HandOver if after.destination.runs() => {
            "The migrator gives the guest to the destination, which runs it.".into()
        }
        HostAction::HandOver => "The migrator gives the guest to the destination.".into(),
        HostAction::HearRunning => {
            "The destination's answer reaches the migrator: the guest runs there.".into()
        }
        HostAction::NoticeBreak if after.source_runs => {
            "The migrator notices that the connection is broken, and lets the guest run on.".into()
        }
        HostAction::NoticeBreak => "The migrator notices that the connection is broken.".into(),
        HostAction::Fail => "The migration fails.".into(),
        HostAction::TakeBack => {
            "The link takes no byte of the hand-over, so the migrator keeps the guest, and lets it run on.".into()
        }
        HostAction::Stray(page) => {
            format!("A device of the source still changes the memory: {page} is zero now.")
        }
        HostAction::PutBack if after.device.control == Control::Done => {
            "The migrator stops logging and tells the device that hinting is over.".into()
        }
        HostAction::PutBack if after.logs.on => "The migrator leaves the logs on.".into(),
        HostAction::PutBack if !before.logs.on => "The migration ends.".into(),
        HostAction::PutBack => "The migrator stops logging.".into(),
        HostAction::Abandon => "The migrator does not try again.".into(),
    }
}

fn closing(after: &State) -> String {
    match after.host.step {
        Step::Closing => format!(" and asks the device to close epoch {}", after.host.epoch),
        _ if after.host.open => " and leaves the epoch open".into(),
        _ => String::new(),
    }
}

fn log_taken(name: &str, before: ModelPages, after: ModelPages) -> String {
    if before == after && !before.is_empty() {
        format!(
            "The migrator does not harvest {name}, which has {}.",
            pages(before)
        )
    } else {
        format!("The migrator harvests {name}: {}.", pages(before))
    }
}

fn of_network(before: &State, action: NetworkAction, after: &State) -> String {
    match action {
        NetworkAction::Deliver(channel) => {
            let record = before.wire.channels[usize::from(channel)];
            let what = record.map_or_else(String::new, |record| match record.content {
                0 => format!("{} is zero", record.page),
                version => format!("{}, version {version}", record.page),
            });
            format!("Channel {} delivers: {what}.", channel + 1)
        }
        NetworkAction::Cut(channel) => {
            format!("Channel {} dies, and what it carried is lost.", channel + 1)
        }
        NetworkAction::Hear if after.destination.runs() && !before.destination.runs() => {
            "The destination takes the guest over and runs it.".into()
        }
        NetworkAction::Hear if before.wire.forward == Some(Forward::HandOver) => {
            "The hand-over arrives too late and has no effect.".into()
        }
        NetworkAction::Hear => "The destination is ready.".into(),
        NetworkAction::Forget => {
            "The destination notices that the connection is broken, and forgets the guest.".into()
        }
        NetworkAction::Clear(page) => {
            format!("The destination, which maps the source's memory, clears {page}.")
        }
        NetworkAction::Break => "The connection breaks.".into(),
        NetworkAction::Lose if before.wire.forward == Some(Forward::HandOver) => {
            "The hand-over is lost.".into()
        }
        NetworkAction::Lose => "The message is lost.".into(),
    }
}

fn of_operator(action: OperatorAction) -> &'static str {
    match action {
        OperatorAction::EndDestination => {
            "An operator sees that the guest does not run at the destination, and ends the process there."
        }
        OperatorAction::ResumeSource => "An operator decides for the source, which runs the guest.",
        OperatorAction::ContinueDestination => {
            "An operator decides for the destination, which runs the guest."
        }
        OperatorAction::EndSource => "The source's host dies.",
    }
}

/// What is wrong at the end of the story.
fn moral(model: &Migration, property: &'static str, last: &State) -> String {
    let content = |version: u8| match version {
        0 => "zeros".to_string(),
        version => format!("version {version}"),
    };
    match property {
        properties::NO_PAGE_LOST => properties::lost(model, last).map(|page| {
            let written = content(last.guest.content[page.index()]);
            let here = content(last.at_destination(page));
            format!("The guest uses {page} and left {written} there. The destination has {here}.")
        }),
        properties::NO_STALE_PAGE => properties::stale(model, last).map(|page| {
            let source = match last.memory[page.index()] {
                0 => "zeros".into(),
                version => format!("version {version} as at the source, or zeros"),
            };
            let here = content(last.at_destination(page));
            format!(
                "The guest has given {page} up, so the destination may have {source}. It has {here}."
            )
        }),
        properties::SOURCE_COMPLETE => properties::damaged(model, last).map(|page| {
            let index = page.index();
            let written = content(last.guest.content[index]);
            let here = content(last.memory[index]);
            format!("The guest uses {page} and left {written} there. Its memory has {here}.")
        }),
        properties::ONE_OWNER => Some("The guest runs in two places.".into()),
        properties::MIGRATION_ENDS => Some(if last.host.step == Step::Over {
            "The migration is over, and the guest runs nowhere.".into()
        } else {
            "Nobody can take another step, and the migration is not over.".into()
        }),
        properties::MEMORY_GIVEN_BACK => {
            Some("The migration is over, and the driver still holds pages: nobody will tell it DONE.".into())
        }
        properties::LOGGING_STOPS => Some("The migration is over, and logging goes on.".into()),
        _ => None,
    }
    .unwrap_or_else(|| format!("Broken: {property}."))
}

fn pages(set: ModelPages) -> String {
    let names: Vec<_> = set.iter().map(|page| page.to_string()).collect();
    if names.is_empty() {
        "nothing".into()
    } else {
        names.join(" and ")
    }
}
