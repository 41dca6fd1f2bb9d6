// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state machine of free page hinting: epochs of the migrator, command ids of the guest.
//!
//! ```text
//!          open                id of this epoch            any other id or STOP
//! Closed ────────► Requested ───────────────────► Running ──────────────────────► Finished
//!    ▲                 │                             │                               │
//!    └─────────────────┴──────── close, reset ───────┴───────────────────────────────┘
//! Done: when the migrator says so or disappears, from any state. The next epoch leaves it.
//! ```
//!
//! Hints count only while [`HintPhase::Running`]. That is entered only from `Requested` and only with the current id,
//! so a replayed id starts nothing. No I/O happens here.

use spec::balloon::{Command, CommandId};
use spec::control::{DeviceStatus, EpochReport, Refusal};
use spec::hint_map::HintPhase;

/// Why a hint buffer was useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Length 0.
    ZeroLength,
    /// Without one whole page.
    Partial,
    /// Outside guest memory or the map.
    OutOfRange,
}

/// The state of hinting, and its counters.
#[derive(Debug)]
pub struct Hinting {
    /// The command id of the open epoch, or of the last one.
    command_id: CommandId,
    phase: HintPhase,
    driver: Driver,
    /// The report of the open epoch; its number is 0 if none is open.
    report: EpochReport,
    /// The totals since the device's start. `phase`, `epoch` and the device's own fields are filled in on demand.
    totals: DeviceStatus,
}

/// What the driver does in the open epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// It is asked for its hints.
    Asked,
    /// It is not asked, because another source reports free pages. It may still be asked later.
    InReserve,
    /// It is not asked.
    Spared,
}

impl Default for Hinting {
    fn default() -> Self {
        Self::after(CommandId::FIRST)
    }
}

impl Hinting {
    /// A device that goes on after `last_id`.
    pub fn after(last_id: CommandId) -> Self {
        Self {
            command_id: last_id,
            phase: HintPhase::Closed,
            driver: Driver::Asked,
            report: EpochReport::default(),
            totals: DeviceStatus::default(),
        }
    }

    /// How far the guest is.
    pub fn phase(&self) -> HintPhase {
        self.phase
    }

    /// The open epoch, 0 if none is open.
    pub fn epoch(&self) -> u64 {
        self.report.epoch
    }

    /// The results of the open epoch so far.
    pub fn report(&self) -> &EpochReport {
        &self.report
    }

    /// The command id of the open epoch, or of the last one.
    pub fn command_id(&self) -> CommandId {
        self.command_id
    }

    /// What the guest shall read in `free_page_hint_cmd_id`. The id stays until the epoch is closed, because a guest
    /// that reads STOP while it hints ends its round early.
    pub fn command(&self) -> Command {
        match self.phase {
            HintPhase::Closed => Command::Stop,
            HintPhase::Done => Command::Done,
            _ if self.driver != Driver::Asked => Command::Stop,
            HintPhase::Requested | HintPhase::Running | HintPhase::Finished => {
                Command::Start(self.command_id)
            }
        }
    }

    /// The totals, with epoch, phase and command id as they are now.
    pub fn status(&self) -> DeviceStatus {
        DeviceStatus {
            epoch: self.report.epoch,
            phase: self.phase,
            command_id: self.command().to_raw(),
            ..self.totals
        }
    }

    /// Opens `epoch` under a new command id.
    ///
    /// # Errors
    /// [`Refusal::EpochOpen`] while one is open, [`Refusal::NoSuchEpoch`] for the number 0.
    pub fn open(&mut self, epoch: u64) -> Result<CommandId, Refusal> {
        if self.report.epoch != 0 {
            return Err(Refusal::EpochOpen);
        }
        if epoch == 0 {
            return Err(Refusal::NoSuchEpoch);
        }
        self.command_id = self.command_id.next();
        self.phase = HintPhase::Requested;
        self.driver = Driver::Asked;
        self.report = EpochReport {
            epoch,
            ..Default::default()
        };
        self.totals.epochs += 1;
        Ok(self.command_id)
    }

    /// Closes `epoch` and returns its results.
    ///
    /// # Errors
    /// [`Refusal::NoSuchEpoch`] if `epoch` is not open.
    pub fn close(&mut self, epoch: u64) -> Result<EpochReport, Refusal> {
        if epoch == 0 || epoch != self.report.epoch {
            return Err(Refusal::NoSuchEpoch);
        }
        let report = EpochReport {
            phase: self.phase,
            ..std::mem::take(&mut self.report)
        };
        self.phase = HintPhase::Closed;
        Ok(report)
    }

    /// Ends the epoch that has just been opened, because nobody could be asked for hints. `before` is the phase in
    /// which it was opened: a guest that may not have read DONE yet still has to. The epoch's id is not used again.
    pub fn withdraw(&mut self, before: HintPhase) {
        self.report = EpochReport::default();
        self.phase = match before {
            HintPhase::Done => HintPhase::Done,
            _ => HintPhase::Closed,
        };
    }

    /// Hinting is over: an open epoch ends, and the guest is told DONE.
    pub fn done(&mut self) {
        self.report = EpochReport::default();
        self.phase = HintPhase::Done;
    }

    /// The guest's driver has gone or starts again. An open epoch stays open until the migrator closes it, but no more
    /// hints count in it.
    pub fn reset(&mut self) {
        self.phase = HintPhase::Closed;
    }

    /// Goes on after a device that migrated here and has used ids up to `last_id`. Its guest may hold hinted pages, so
    /// it is told DONE.
    pub fn restore(&mut self, last_id: CommandId) {
        self.command_id = last_id;
        self.done();
    }

    /// The guest sent a command buffer of `length` bytes, which starts with `bytes`.
    pub fn guest_command(&mut self, length: u64, bytes: [u8; 4]) {
        if length != 4 {
            self.totals.bad_commands += 1;
            return;
        }
        let command = Command::from_raw(u32::from_le_bytes(bytes));
        let asked_for = command == Command::Start(self.command_id);
        match self.phase {
            HintPhase::Requested if asked_for => self.phase = HintPhase::Running,
            HintPhase::Running => {
                self.phase = HintPhase::Finished;
                self.totals.bad_commands += u64::from(command != Command::Stop);
            }
            // A late STOP of a round that was closed before it ended is not an error.
            _ => self.totals.bad_commands += u64::from(command != Command::Stop),
        }
    }

    /// Whether a hint counts now. If not, it is counted as stale.
    pub fn takes_hint(&mut self) -> bool {
        let running = self.phase == HintPhase::Running;
        if !running {
            self.stale();
        }
        running
    }

    /// A hint was used: `added` of its pages are new. `cut` says whether a part of it lay outside of memory.
    pub fn hinted(&mut self, added: u64, cut: bool) {
        self.report.hints += 1;
        self.report.pages += added;
        self.totals.hints += 1;
        self.totals.pages += added;
        self.totals.out_of_range += u64::from(cut);
    }

    /// A map of the guest's agent was used: `added` of its pages are new.
    pub fn told_by_agent(&mut self, added: u64) {
        self.report.pages += added;
        self.report.agent_pages += added;
        self.totals.pages += added;
        self.totals.agent_pages += added;
    }

    /// A hint, or a map of the agent, came when none was wanted.
    pub fn stale(&mut self) {
        self.report.stale += 1;
        self.totals.stale += 1;
    }

    /// The driver cannot or must not be asked in this epoch.
    pub fn without_driver(&mut self) {
        self.phase = HintPhase::Finished;
        self.driver = Driver::Spared;
    }

    /// The driver is not asked in this epoch, unless it is called ([`Hinting::call_driver`]).
    pub fn keep_driver(&mut self) {
        self.phase = HintPhase::Finished;
        self.driver = Driver::InReserve;
    }

    /// Asks the driver if it is in reserve for this epoch, and has not gone meanwhile. Returns whether it is asked.
    pub fn call_driver(&mut self) -> bool {
        let kept = self.phase == HintPhase::Finished && self.driver == Driver::InReserve;
        if kept {
            self.phase = HintPhase::Requested;
            self.driver = Driver::Asked;
        }
        kept
    }

    /// A hint was useless.
    pub fn rejected(&mut self, why: Rejection) {
        self.report.rejected += 1;
        match why {
            Rejection::ZeroLength => self.totals.zero_length += 1,
            Rejection::Partial => self.totals.partial += 1,
            Rejection::OutOfRange => self.totals.out_of_range += 1,
        }
    }

    /// A descriptor chain, or a whole ring, could not be walked to its end.
    pub fn broken_chain(&mut self) {
        self.totals.broken_chains += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(hinting: &mut Hinting, raw: u32) {
        hinting.guest_command(4, raw.to_le_bytes());
    }

    fn requested() -> (Hinting, CommandId) {
        let mut hinting = Hinting::default();
        let id = hinting.open(1).unwrap();
        (hinting, id)
    }

    fn running() -> (Hinting, CommandId) {
        let (mut hinting, id) = requested();
        say(&mut hinting, id.get());
        assert_eq!(hinting.phase(), HintPhase::Running);
        (hinting, id)
    }

    #[test]
    fn the_id_is_published_until_the_epoch_is_closed() {
        let (mut hinting, id) = requested();
        assert_eq!(hinting.command(), Command::Start(id));
        say(&mut hinting, id.get());
        assert_eq!(hinting.command(), Command::Start(id));
        say(&mut hinting, Command::STOP);
        assert_eq!(hinting.phase(), HintPhase::Finished);
        assert_eq!(hinting.command(), Command::Start(id));
        hinting.close(1).unwrap();
        assert_eq!(hinting.command(), Command::Stop);
        hinting.done();
        assert_eq!(hinting.command(), Command::Done);
    }

    #[test]
    fn only_the_current_id_starts_a_round() {
        let (mut hinting, id) = requested();
        for raw in [Command::DONE, id.get() - 1, id.get() + 1, u32::MAX] {
            say(&mut hinting, raw);
            assert_eq!(hinting.phase(), HintPhase::Requested, "{raw:#x}");
        }
        assert_eq!(hinting.status().bad_commands, 4);
        say(&mut hinting, Command::STOP);
        assert_eq!(hinting.status().bad_commands, 4, "a late STOP is not bad");
    }

    #[test]
    fn an_id_that_is_played_again_starts_nothing() {
        let (mut hinting, old) = running();
        say(&mut hinting, Command::STOP);
        say(&mut hinting, old.get());
        assert_eq!(hinting.phase(), HintPhase::Finished);
        hinting.close(1).unwrap();
        say(&mut hinting, old.get());
        assert_eq!(hinting.phase(), HintPhase::Closed);
        hinting.open(2).unwrap();
        say(&mut hinting, old.get());
        assert_eq!(hinting.phase(), HintPhase::Requested);
        assert!(!hinting.takes_hint());
        assert_eq!(hinting.status().bad_commands, 3);
    }

    #[test]
    fn a_round_ends_with_whatever_command_comes_next() {
        for raw in [Command::STOP, Command::DONE, 7, u32::MAX] {
            let (mut hinting, _) = running();
            say(&mut hinting, raw);
            assert_eq!(hinting.phase(), HintPhase::Finished);
        }
    }

    #[test]
    fn a_command_of_another_size_changes_nothing() {
        for length in [0, 1, 3, 5, 8, 1 << 32] {
            let (mut hinting, id) = requested();
            hinting.guest_command(length, id.get().to_le_bytes());
            assert_eq!(hinting.phase(), HintPhase::Requested);
            assert_eq!(hinting.status().bad_commands, 1);
        }
    }

    #[test]
    fn ids_rise_and_wrap_past_the_reserved_numbers() {
        let mut hinting = Hinting::default();
        hinting.restore(CommandId::new(u32::MAX - 1).unwrap());
        let mut ids = Vec::new();
        for epoch in 1..=3 {
            ids.push(hinting.open(epoch).unwrap().get());
            hinting.close(epoch).unwrap();
        }
        assert_eq!(ids, [u32::MAX, 0x8000_0000, 0x8000_0001]);
    }

    #[test]
    fn a_device_that_migrated_tells_its_guest_done_and_goes_on_counting_ids() {
        let (source, id) = running();
        let mut destination = Hinting::default();
        destination.restore(source.command_id());
        assert_eq!(destination.command(), Command::Done);
        assert_eq!(destination.open(1).unwrap(), id.next());
    }

    #[test]
    fn one_epoch_is_open_at_a_time_and_only_it_can_be_closed() {
        let (mut hinting, _) = requested();
        assert_eq!(hinting.open(2), Err(Refusal::EpochOpen));
        assert_eq!(hinting.close(2), Err(Refusal::NoSuchEpoch));
        assert_eq!(hinting.close(0), Err(Refusal::NoSuchEpoch));
        assert!(hinting.close(1).is_ok());
        assert_eq!(hinting.close(1), Err(Refusal::NoSuchEpoch));
        assert_eq!(hinting.open(0), Err(Refusal::NoSuchEpoch));
    }

    #[test]
    fn an_epoch_in_which_nobody_could_be_asked_leaves_the_guest_what_it_was_told() {
        for (done, told) in [(false, Command::Stop), (true, Command::Done)] {
            let mut hinting = Hinting::default();
            if done {
                hinting.done();
            }
            let before = hinting.phase();
            let id = hinting.open(1).unwrap();
            hinting.without_driver();
            hinting.withdraw(before);
            assert_eq!((hinting.command(), hinting.epoch()), (told, 0));
            assert_eq!(hinting.open(2).unwrap(), id.next());
        }
    }

    #[test]
    fn hints_count_only_while_the_guest_runs_its_round() {
        let (mut hinting, id) = requested();
        assert!(!hinting.takes_hint());
        say(&mut hinting, id.get());
        assert!(hinting.takes_hint());
        say(&mut hinting, Command::STOP);
        assert!(!hinting.takes_hint());
        let report = hinting.close(1).unwrap();
        assert_eq!((report.phase, report.stale), (HintPhase::Finished, 2));
        assert!(!hinting.takes_hint());
        hinting.done();
        assert!(!hinting.takes_hint());
        assert_eq!(hinting.status().stale, 4);
    }

    #[test]
    fn a_driver_that_is_spared_finds_no_id_to_answer() {
        let (mut hinting, id) = requested();
        hinting.without_driver();
        assert_eq!(hinting.command(), Command::Stop);
        say(&mut hinting, id.get());
        assert!(!hinting.takes_hint());
        hinting.close(1).unwrap();
        let id = hinting.open(2).unwrap();
        assert_eq!(hinting.command(), Command::Start(id));
    }

    #[test]
    fn a_driver_in_reserve_can_be_called_once_while_its_epoch_is_open() {
        let (mut hinting, id) = requested();
        assert!(!hinting.call_driver(), "it is asked already");
        hinting.keep_driver();
        assert_eq!(hinting.command(), Command::Stop);
        assert!(hinting.call_driver());
        assert_eq!(hinting.command(), Command::Start(id));
        assert!(!hinting.call_driver());
        hinting.keep_driver();
        hinting.close(1).unwrap();
        assert!(!hinting.call_driver());
        assert_eq!(hinting.command(), Command::Stop);
    }

    #[test]
    fn a_reset_in_mid_round_keeps_the_report_and_takes_nothing_more() {
        let (mut hinting, id) = running();
        hinting.hinted(1024, false);
        hinting.reset();
        assert_eq!(hinting.command(), Command::Stop);
        say(&mut hinting, id.get());
        assert!(!hinting.takes_hint());
        let report = hinting.close(1).unwrap();
        assert_eq!((report.pages, report.stale), (1024, 1));
        assert_eq!(report.phase, HintPhase::Closed);
    }
}
