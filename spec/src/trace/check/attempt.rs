// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One migration away from a host, from its beginning to its end.

use alloc::format;
use alloc::vec::Vec;

use super::hints::Hints;
use super::pages::{MAX_PAGES, Pages, first_page};
use super::sending::Sending;
use super::{Broken, Clause};
use crate::PageRange;
use crate::trace::event::{Brought, Log, Outcome, Writer};
use crate::trace::{Event, PageBits};

/// What a migration has done so far, according to its records.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    logs: Vec<LogState>,
    memory: Pages,
    /// Pages armed in KVM's log, where the machine records that chunk by chunk.
    armed: Pages,
    holes_asked: bool,
    pub(super) hints: Hints,
    harvest: Option<Harvest>,
    /// Pages that early harvests brought and that were not copied since.
    early: Pages,
    /// Pages that early harvests brought and that were copied since, until the next harvest.
    early_copied: Pages,
    /// Pages that were taken out of a vCPU's ring and that no harvest has brought since.
    taken: Pages,
    /// Those of them that were taken before the harvest under way.
    awaited: Pages,
    last_harvest_is_over: bool,
    /// Pages to be sent, as the migration bitmap should have them.
    pending: Pages,
    pub(super) sending: Sending,
    /// Pages that the balloon discarded and that its log has not brought since.
    discarded: Pages,
    stopped: Option<StoppedGuest>,
    /// How far the guest is throttled, in percent.
    throttle: u64,
    /// The destination has the memory itself.
    lent: bool,
    handed_over: bool,
    done: bool,
    pub(super) harvests: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct LogState {
    writer: Option<Writer>,
    started: bool,
    harvested: bool,
    stopped: bool,
}

#[derive(Clone, Copy, Debug)]
enum Harvest {
    /// An early harvest, in the middle of a round.
    Early,
    /// A harvest of all logs; `last` if everything is stopped.
    Whole { last: bool },
}

#[derive(Clone, Copy, Debug)]
struct StoppedGuest {
    devices: bool,
}

/// The most logs that a migration may have. A trace that claims more is invalid.
const MAX_LOGS: u64 = 256;

impl Attempt {
    /// A migration of a machine with `logs` logs.
    pub(super) fn new(logs: u64) -> Result<Self, Broken> {
        if logs > MAX_LOGS {
            return Err((Clause::Order, format!("no migration has {logs} logs")));
        }
        Ok(Self {
            logs: alloc::vec![LogState::default(); logs as usize],
            ..Self::default()
        })
    }

    pub(super) fn replay(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Memory(range) => self.memory(range),
            Event::LogStarted(log) => self.log_started(log),
            Event::HolesAsked => self.holes_asked(),
            Event::Hole(range) => self.hole(range),
            Event::HoleTaken(bits) => self.hole_taken(bits),
            Event::Open(epoch) => self.open(epoch),
            Event::Published(epoch) => self.hints.published(epoch),
            Event::Hint(hint) => {
                self.guest_runs("a hint is taken")?;
                self.hints.hint(hint)
            }
            Event::Closed(epoch) => self.hints.closed(epoch),
            Event::Forgotten => self.hints.forgotten(),
            Event::HarvestBegin(last) => self.harvest_begin(last),
            Event::Brought(brought) => self.brought(brought),
            Event::HarvestEnd => self.harvest_end(),
            Event::EarlyBegin => self.early_begin(),
            Event::EarlyEnd => self.early_end(),
            Event::Claim(bits) => self.claim(bits),
            Event::Skip(bits) => self.skip(bits),
            Event::LateDiscard(bits) => self.late_discard(bits),
            Event::Copy(bits) => self.copy(bits),
            Event::Zero(bits) => self.sending.zero(self.in_memory(bits)),
            Event::PagesSent(count) => self.sending.pages_sent(count),
            Event::ZeroSent(range) | Event::DiscardSent(range) => self.sending.made_zero(range),
            Event::RoundSent(_) => self.sending.all_is_sent("the round ends"),
            Event::Paused => self.paused(),
            Event::DevicesStopped => self.devices_stopped(),
            Event::Promised(range) => self.promised(range),
            Event::HandOver => self.hand_over(),
            Event::Resuming => self.resuming(),
            Event::Throttles(percent) => self.throttles(percent),
            Event::LogHarvested(log) => self.log_harvested(log),
            Event::LogStopped(log) => self.log(log).map(|log| log.stopped = true),
            other => {
                self.note(other);
                Ok(())
            }
        }
    }

    /// Takes note of an event that cannot break the rule by itself.
    fn note(&mut self, event: Event) {
        match event {
            Event::Armed(range) => self.armed.insert_range(range),
            Event::RingTaken(bits) => self.taken.insert(self.in_memory(bits)),
            Event::Channels(count) => self.sending.channels(count),
            Event::Drained => self.sending.drained(),
            Event::Lent => self.lent = true,
            Event::DeviceClosed(epoch) => self.hints.device_closed(epoch),
            Event::HintsLost => self.hints.lose(),
            Event::HandOverVoid => self.handed_over = false,
            Event::Done => self.done = true,
            _ => {}
        }
    }

    /// The migration is over.
    pub(super) fn end(&self, outcome: Outcome) -> Result<(), Broken> {
        let runs = |log: &LogState| log.started && !log.stopped;
        if let Some(log) = self.logs.iter().position(runs) {
            let why = format!("log {log} still runs");
            return Err((Clause::NoHintAfterPause, why));
        }
        if self.hints.opened > 0 && !self.done && !self.hints.are_lost() {
            let why = "the guest was asked for hints, and the device has not been told DONE";
            return Err((Clause::NoHintAfterPause, why.into()));
        }
        let left = matches!(outcome, Outcome::Completed | Outcome::Unconfirmed);
        if left && !self.handed_over {
            return Err((Clause::OneOwner, "the guest was not handed over".into()));
        }
        if !left && self.handed_over {
            return Err((Clause::OneOwner, "the guest was handed over".into()));
        }
        if !left && self.stopped.is_some() {
            let why = "the guest was stopped and has not been resumed";
            return Err((Clause::PutBack, why.into()));
        }
        self.guest_is_at_full_speed()
    }

    fn throttles(&mut self, percent: u64) -> Result<(), Broken> {
        if percent >= 100 {
            let why = format!("a guest without {percent} % of its time does not run");
            return Err((Clause::Order, why));
        }
        if percent > 0 {
            self.guest_runs("it is throttled")?;
        }
        self.throttle = percent;
        Ok(())
    }

    fn guest_is_at_full_speed(&self) -> Result<(), Broken> {
        match self.throttle {
            0 => Ok(()),
            percent => {
                let why = format!("the guest is still throttled by {percent} %");
                Err((Clause::PutBack, why))
            }
        }
    }

    /// The balloon device is about to give memory back.
    pub(super) fn discarding(&mut self, pages: PageRange) {
        let logged = |log: &LogState| log.writer == Some(Writer::BackEnd) && log.started;
        if self.logs.iter().any(logged) && !self.last_harvest_is_over {
            self.discarded.insert_range(pages);
        }
    }

    /// The balloon device could not give the memory back.
    pub(super) fn not_discarded(&mut self, pages: PageRange) {
        self.discarded.remove_range(pages);
    }

    fn log(&mut self, log: Log) -> Result<&mut LogState, Broken> {
        self.logs
            .get_mut(usize::from(log.index))
            .ok_or_else(|| (Clause::Order, format!("this migration has no {log}")))
    }

    fn in_memory(&self, bits: PageBits) -> PageBits {
        PageBits {
            mask: bits.mask & self.memory.word(bits.word),
            ..bits
        }
    }

    fn memory(&mut self, range: PageRange) -> Result<(), Broken> {
        if range.end() > MAX_PAGES {
            let why = "a trace is about at most 4 TiB of guest memory";
            return Err((Clause::Order, why.into()));
        }
        self.memory.insert_range(range);
        self.pending.insert_range(range);
        Ok(())
    }

    fn log_started(&mut self, log: Log) -> Result<(), Broken> {
        *self.log(log)? = LogState {
            writer: Some(log.writer),
            started: true,
            ..LogState::default()
        };
        if log.writer == Writer::Vcpus {
            // What was written before is forgotten.
            self.taken.clear();
        }
        // A machine that does not record chunks has armed all pages now.
        if log.writer == Writer::Vcpus
            && !self.armed.is_empty()
            && let Some(page) = self.memory.first_outside(&self.armed)
        {
            let why = format!("page {page:#x} has not been armed");
            return Err((Clause::ArmFirst, why));
        }
        Ok(())
    }

    fn all_logs_run(&self, what: &str) -> Result<(), Broken> {
        match self.logs.iter().position(|log| !log.started) {
            Some(log) => Err((
                Clause::ArmFirst,
                format!("{what} before log {log} has been started and every page armed in it"),
            )),
            None => Ok(()),
        }
    }

    fn guest_runs(&self, what: &str) -> Result<(), Broken> {
        match self.stopped {
            Some(_) => Err((
                Clause::NoHintAfterPause,
                format!("{what}, and the guest is stopped"),
            )),
            None => Ok(()),
        }
    }

    fn holes_asked(&mut self) -> Result<(), Broken> {
        self.holes_asked = true;
        if self.harvest.is_some() {
            let why = "a harvest is under way, and a page that it clears may no longer be a hole";
            return Err((Clause::HarvestEverything, why.into()));
        }
        self.all_logs_run("the migrator asks for holes")
    }

    fn hole(&mut self, range: PageRange) -> Result<(), Broken> {
        if !self.holes_asked {
            let why = "nobody has asked for holes since the pages were armed";
            return Err((Clause::ArmFirst, why.into()));
        }
        self.pending.remove_range(range);
        Ok(())
    }

    /// A page is taken for a hole until the next harvest, which may bring a write to it.
    fn hole_taken(&mut self, bits: PageBits) -> Result<(), Broken> {
        if !self.holes_asked {
            let why = "nobody has asked for holes since the last harvest";
            return Err((Clause::CloseBeforeHarvest, why.into()));
        }
        self.sending.hole_taken(self.in_memory(bits))
    }

    fn open(&mut self, epoch: u64) -> Result<(), Broken> {
        self.guest_runs("the epoch opens")?;
        self.all_logs_run("the epoch opens")?;
        if self.harvest.is_some() {
            let why = "the harvest under way is not complete";
            return Err((Clause::CloseBeforeHarvest, why.into()));
        }
        self.hints.open(epoch)
    }

    fn harvest_begin(&mut self, last: bool) -> Result<(), Broken> {
        self.hints.none_stands()?;
        if last && !self.stopped.is_some_and(|stopped| stopped.devices) {
            let why = "guest and devices still run and may write";
            return Err((Clause::HarvestEverything, why.into()));
        }
        self.sending.all_is_sent("a harvest begins")?;
        self.sending.nothing_is_under_way("a harvest begins")?;
        self.holes_asked = false;
        self.early_copied.clear();
        self.awaited = self.taken.clone();
        self.harvest = Some(Harvest::Whole { last });
        Ok(())
    }

    /// An early harvest is allowed while an epoch is open, because it does not write to the migration bitmap.
    fn early_begin(&mut self) -> Result<(), Broken> {
        self.all_logs_run("an early harvest begins")?;
        if self.harvest.replace(Harvest::Early).is_some() {
            return Err((Clause::Order, "a harvest is under way already".into()));
        }
        Ok(())
    }

    fn early_end(&mut self) -> Result<(), Broken> {
        match self.harvest.take() {
            Some(Harvest::Early) => Ok(()),
            _ => Err((Clause::Order, "no early harvest is under way".into())),
        }
    }

    fn brought(&mut self, brought: Brought) -> Result<(), Broken> {
        let bits = self.in_memory(brought.pages);
        match self.harvest {
            Some(Harvest::Whole { .. }) => self.pending.insert(bits),
            Some(Harvest::Early) => self.early.insert(bits),
            None => return Err((Clause::Order, "no harvest is under way".into())),
        }
        match brought.log.writer {
            Writer::BackEnd => self.discarded.remove(bits),
            Writer::Vcpus => {
                self.taken.remove(bits);
                self.awaited.remove(bits);
            }
            Writer::Vmm => {}
        }
        Ok(())
    }

    fn log_harvested(&mut self, log: Log) -> Result<(), Broken> {
        let counts = matches!(self.harvest, Some(Harvest::Whole { .. }));
        self.log(log)?.harvested |= counts;
        if counts
            && log.writer == Writer::Vcpus
            && let Some(page) = self.awaited.first()
        {
            let why = format!(
                "page {page:#x} was taken out of a vCPU's ring before, and {log} did not bring it"
            );
            return Err((Clause::HarvestEverything, why));
        }
        Ok(())
    }

    fn harvest_end(&mut self) -> Result<(), Broken> {
        let Some(Harvest::Whole { last }) = self.harvest.take() else {
            return Err((Clause::Order, "no harvest is under way".into()));
        };
        self.pending.take_all(&mut self.early);
        for (index, log) in self.logs.iter_mut().enumerate() {
            if !core::mem::take(&mut log.harvested) {
                let why = format!("log {index} was left out");
                return Err((Clause::HarvestEverything, why));
            }
        }
        self.harvests += 1;
        self.last_harvest_is_over |= last;
        if let Some(page) = self.discarded.first()
            && last
        {
            let why =
                format!("the balloon discarded page {page:#x}, and its log did not report that");
            return Err((Clause::HarvestEverything, why));
        }
        Ok(())
    }

    fn claim(&mut self, bits: PageBits) -> Result<(), Broken> {
        if self.harvest.is_some() {
            let why = "a harvest is under way: a write to a page that it has read and not cleared is lost";
            return Err((Clause::HarvestEverything, why.into()));
        }
        let bits = self.in_memory(bits);
        self.pending.remove(bits);
        self.sending.claim(bits);
        Ok(())
    }

    /// A copy takes a page out of the early pages. (A skip does not.)
    fn copy(&mut self, bits: PageBits) -> Result<(), Broken> {
        let bits = self.in_memory(bits);
        let early = bits.mask & self.early.word(bits.word);
        self.early.remove(bits);
        self.early_copied.insert(PageBits {
            mask: early,
            ..bits
        });
        self.sending.copy(bits, early)
    }

    fn skip(&mut self, bits: PageBits) -> Result<(), Broken> {
        let bits = self.in_memory(bits);
        self.sending.skip(bits)?;
        self.guest_runs("a hint is used")?;
        self.hints.cover(bits)
    }

    /// Pages may be discarded that were sent and hinted since, in any order, if a write after the hint is in a log.
    fn late_discard(&mut self, bits: PageBits) -> Result<(), Broken> {
        let bits = self.in_memory(bits);
        self.guest_runs("a hint is used")?;
        if self.harvest.is_some() {
            let why = "a harvest is under way, and brings writes that are later than the hint";
            return Err((Clause::CloseBeforeHarvest, why.into()));
        }
        self.hints.cover_late(bits)?;
        let unlogged = bits.mask & self.early_copied.word(bits.word);
        if unlogged != 0 {
            let page = first_page(bits.word, unlogged);
            let why = format!(
                "page {page:#x} was copied after an early harvest took its write out of the log"
            );
            return Err((Clause::HarvestEverything, why));
        }
        self.sending.no_page_is_under_way()?;
        self.sending.late_discard(bits);
        Ok(())
    }

    fn paused(&mut self) -> Result<(), Broken> {
        if let Some(epoch) = self.hints.open_epoch() {
            let why = format!("epoch {epoch} is still open");
            return Err((Clause::NoHintAfterPause, why));
        }
        self.stopped = Some(StoppedGuest { devices: false });
        Ok(())
    }

    fn devices_stopped(&mut self) -> Result<(), Broken> {
        let Some(stopped) = &mut self.stopped else {
            return Err((Clause::Order, "the guest is not stopped".into()));
        };
        stopped.devices = true;
        Ok(())
    }

    /// Pages of a guest that is stopped are sent later. Before the last harvest they may still be written.
    fn promised(&mut self, range: PageRange) -> Result<(), Broken> {
        if !self.last_harvest_is_over {
            let why =
                "pages are promised before guest and devices have stopped and all logs were read";
            return Err((Clause::HarvestEverything, why.into()));
        }
        self.pending.remove_range(range);
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Broken> {
        if self.lent && !self.stopped.is_some_and(|stopped| stopped.devices) {
            let why = "guest and devices still run and may write to lent memory";
            return Err((Clause::HarvestEverything, why.into()));
        }
        if !self.lent && !self.last_harvest_is_over {
            let why = "nothing was harvested since guest and devices stopped";
            return Err((Clause::HarvestEverything, why.into()));
        }
        if let Some(page) = self.pending.first() {
            let why = format!("page {page:#x} is still to be sent");
            return Err((Clause::HarvestEverything, why));
        }
        self.sending.all_is_sent("the guest is handed over")?;
        self.sending
            .nothing_is_under_way("the guest is handed over")?;
        self.handed_over = true;
        Ok(())
    }

    fn resuming(&mut self) -> Result<(), Broken> {
        if self.handed_over {
            return Err((Clause::OneOwner, "the guest was handed over".into()));
        }
        self.stopped = None;
        self.guest_is_at_full_speed()
    }
}
