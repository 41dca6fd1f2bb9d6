// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration away from here. There is one at a time, and the last one's result is kept.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::snapshot::{Saved, Storage};
use host_migrator::{
    Connection, FileSink, GuestCopy, Migration, MigrationError, MigrationMonitor, MigrationParams,
    MigrationReport, MigrationState, MigrationStatus, OwnershipRecord, Source,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::control::{EventPage, EventsArguments, TuningArguments};

/// What the last migration away from here did with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Away {
    /// There was none, or it failed or was cancelled.
    No,
    /// It is under way.
    UnderWay,
    /// The guest was handed over, and the destination has not confirmed that it runs.
    Unconfirmed,
    /// The guest runs at the destination, which still needs memory from here.
    Serving,
    /// As [`Away::Unconfirmed`], and the destination would still need memory from here.
    ServingUnconfirmed,
    /// The guest is at the destination.
    HandedOver,
}

/// The running or last migration away from this machine.
#[derive(Debug, Default)]
pub struct Outgoing {
    slot: Mutex<Slot>,
    /// The migration's thread has ended.
    ended: Condvar,
}

/// How long the report of a migration may take after its state says that it is over.
const REPORT_DELAY: Duration = Duration::from_secs(5);
/// How long a cancelled migration may take to end. Less than a client waits for an answer.
const CANCEL_DELAY: Duration = Duration::from_secs(8);
/// How often it is asked whether it has.
const CANCEL_POLL: Duration = Duration::from_millis(2);

const NOTHING_PAUSED: &str = "no postcopy here has a broken connection";
const HANDED_OVER: &str =
    "the guest has been handed over: the migration can no longer be cancelled";

/// Whether a migration in this state brings memory to a guest that runs at the destination.
fn serves(state: MigrationState) -> bool {
    matches!(
        state,
        MigrationState::PostcopyActive
            | MigrationState::PostcopyPaused
            | MigrationState::PostcopyRecover
    )
}

#[derive(Debug, Default)]
struct Slot {
    monitor: Option<MigrationMonitor>,
    /// Who owns the guest that is sent.
    ownership: Option<OwnershipRecord>,
    /// How many migrations have begun.
    number: u64,
    running: bool,
    report: Option<Arc<MigrationReport>>,
    /// Why the guest ended while it was being migrated.
    guest_ended: Option<String>,
    /// The guest was handed over, and an operator has decided that it is here.
    taken_back: bool,
    /// The guest is saved, and stays here.
    stays: bool,
}

impl Slot {
    /// Takes in a migration that begins.
    fn begin(&mut self, monitor: MigrationMonitor, stays: bool) {
        *self = Self {
            monitor: Some(monitor),
            number: self.number + 1,
            running: true,
            stays,
            ..Self::default()
        };
    }
}

impl Slot {
    /// Whether the state says that the migration is over.
    fn is_over(&self) -> bool {
        let state = self.monitor.as_ref().map(|monitor| monitor.status().status);
        state.is_some_and(MigrationState::is_over)
    }
}

impl Outgoing {
    /// Starts a migration, and a thread that waits for its end.
    ///
    /// # Errors
    /// A sentence, if one is under way already or no thread can be started.
    pub fn start(
        self: &Arc<Self>,
        source: Source<'static>,
        params: MigrationParams,
        channel: Connection,
    ) -> Result<(), String> {
        let mut slot = self.free()?;
        let ownership = source.ownership.clone();
        let handle =
            Migration::start(source, params, channel).map_err(|error| error.to_string())?;
        slot.begin(handle.monitor(), false);
        slot.ownership = Some(ownership);
        drop(slot);
        self.follow(move || handle.join().1)
    }

    /// Starts to save the guest of `source` into `sink`. `ended` is called with the result before anybody hears of it.
    ///
    /// # Errors
    /// As [`Outgoing::start`].
    pub fn start_save(
        self: &Arc<Self>,
        mut source: Source<'static>,
        params: MigrationParams,
        mut sink: FileSink,
        ended: impl FnOnce(bool) + Send + 'static,
    ) -> Result<(), String> {
        let mut slot = self.free()?;
        let copy = GuestCopy::observed(params, |_| ());
        slot.begin(copy.monitor(), true);
        drop(slot);
        self.follow(move || {
            let result = copy.run(&mut source, &mut sink);
            ended(result.is_ok());
            result
        })
    }

    /// The slot, if no migration is under way.
    fn free(&self) -> Result<MutexGuard<'_, Slot>, String> {
        let slot = self.settled();
        match slot.running {
            true => Err("a migration is under way already".into()),
            false => Ok(slot),
        }
    }

    /// Notes the `end` of the migration that has begun, in a thread.
    fn follow(
        self: &Arc<Self>,
        end: impl FnOnce() -> Result<MigrationReport, MigrationError> + Send + 'static,
    ) -> Result<(), String> {
        let ours = Arc::clone(self);
        let waiter = thread::Builder::new()
            .name("migration-end".into())
            .spawn(move || {
                let result = end();
                let mut slot = ours.slot.lock();
                slot.running = false;
                match result {
                    Ok(report) => slot.report = Some(Arc::new(report)),
                    Err(error) => log::warn!("the migration ended: {error}"),
                }
                drop(slot);
                ours.ended.notify_all();
            });
        waiter.map(|_| ()).map_err(|error| {
            self.slot.lock().running = false;
            format!("cannot wait for the migration: {error}")
        })
    }

    /// The state of the running or last migration; the default if there was none.
    pub fn status(&self) -> MigrationStatus {
        let slot = self.slot.lock();
        let Some(monitor) = &slot.monitor else {
            return MigrationStatus::default();
        };
        let mut status = monitor.status();
        if let Some(why) = &slot.guest_ended
            && matches!(
                status.status,
                MigrationState::Cancelled | MigrationState::Failed
            )
        {
            // Nobody cancelled it.
            status.status = MigrationState::Failed;
            status.error_desc = Some(format!("the guest has ended: {why}"));
        }
        status
    }

    /// What has happened in the running or last migration since `known`.
    pub fn events(&self, known: EventsArguments) -> EventPage {
        let slot = self.slot.lock();
        let after = if known.migration == slot.number {
            known.after
        } else {
            0
        };
        let monitor = slot.monitor.as_ref();
        EventPage {
            migration: slot.number,
            events: monitor.map_or_else(Vec::new, |it| it.events_after(after, EventPage::MOST)),
        }
    }

    /// Hands the guest over before its memory.
    ///
    /// # Errors
    /// A sentence, if no migration is running that may do so.
    pub fn start_postcopy(&self) -> Result<(), String> {
        let slot = self.slot.lock();
        match slot.monitor.as_ref().filter(|_| slot.running) {
            None => Err("no migration is under way".into()),
            Some(monitor) if monitor.start_postcopy() => Ok(()),
            Some(_) => Err("this migration has begun without --postcopy, so all memory is sent before the guest".into()),
        }
    }

    /// Goes on over a connection of `connect` with a postcopy whose connection has broken.
    ///
    /// # Errors
    /// A sentence, if there is none, or no connection.
    pub fn recover(
        &self,
        connect: impl FnOnce() -> Result<Connection, String>,
    ) -> Result<(), String> {
        let monitor = self.paused()?;
        match monitor.recover(connect()?) {
            true => Ok(()),
            false => Err(NOTHING_PAUSED.into()),
        }
    }

    /// Saves what the destination of a postcopy whose connection has broken may lack, to the storage that `open` opens. The postcopy
    /// has ended then.
    ///
    /// # Errors
    /// A sentence, if there is no such postcopy, or it cannot be saved and waits on.
    pub fn save_half(
        &self,
        open: impl FnOnce() -> Result<Box<dyn Storage>, String>,
    ) -> Result<Saved, String> {
        let monitor = self.paused()?;
        match monitor.save_half(open()?) {
            Some(saved) => saved.map_err(|error| error.to_string()),
            None => Err(NOTHING_PAUSED.into()),
        }
    }

    /// The postcopy whose connection has broken.
    fn paused(&self) -> Result<MigrationMonitor, String> {
        let monitor = {
            let slot = self.slot.lock();
            slot.monitor.clone().filter(|_| slot.running)
        };
        monitor
            .filter(|it| it.status().status == MigrationState::PostcopyPaused)
            .ok_or_else(|| NOTHING_PAUSED.into())
    }

    /// Changes how the running migration goes on.
    ///
    /// # Errors
    /// A sentence, if no migration is running, or a value cannot be used. Nothing is changed then.
    pub fn tune(&self, arguments: &TuningArguments) -> Result<(), String> {
        let slot = self.slot.lock();
        let Some(monitor) = slot.monitor.as_ref().filter(|_| slot.running) else {
            return Err("no migration is under way".into());
        };
        monitor.tune(|tuning| {
            *tuning = arguments.on(*tuning)?;
            Ok(())
        })
    }

    /// Called when the guest has ended for the reason `why`. A migration that is under way ends, too.
    pub(super) fn guest_ended(&self, why: &str) {
        let mut slot = self.slot.lock();
        if let Some(monitor) = slot.monitor.as_ref().filter(|_| slot.running)
            && monitor.cancel()
        {
            slot.guest_ended = Some(why.to_owned());
        }
    }

    /// Where the last migration has left the guest.
    pub(super) fn away(&self) -> Away {
        let slot = self.slot.lock();
        let Some(monitor) = &slot.monitor else {
            return Away::No;
        };
        match monitor.status().status {
            // The state says so a moment before the save has ended.
            _ if slot.stays && slot.running => Away::UnderWay,
            _ if slot.stays => Away::No,
            MigrationState::Completed | MigrationState::HandedOverInPart => Away::HandedOver,
            state if serves(state) => match &slot.ownership {
                Some(record) if !record.is_certain() => Away::ServingUnconfirmed,
                _ => Away::Serving,
            },
            // The state says so a moment before the migration has put everything back.
            MigrationState::HandedOverUnconfirmed if slot.running => Away::UnderWay,
            MigrationState::HandedOverUnconfirmed if !slot.taken_back => Away::Unconfirmed,
            state if state.is_over() => Away::No,
            _ => Away::UnderWay,
        }
    }

    /// Ends a postcopy whose hand-over was not confirmed, and whose connection has broken.
    ///
    /// # Errors
    /// A sentence, if the destination is being asked again at this moment, or the postcopy does not end in time.
    pub(super) fn give_up_unconfirmed(&self) -> Result<(), String> {
        let monitor = self.paused()?;
        if !monitor.give_memory_up() {
            return Err(NOTHING_PAUSED.into());
        }
        match self.away_soon() {
            Away::Unconfirmed => Ok(()),
            _ => Err("the postcopy has not ended yet: try again".into()),
        }
    }

    /// Where a migration that ends now has left the guest.
    fn away_soon(&self) -> Away {
        let mut slot = self.slot.lock();
        let runs = |slot: &mut Slot| slot.running;
        self.ended.wait_while_for(&mut slot, runs, REPORT_DELAY);
        drop(slot);
        self.away()
    }

    /// An operator has decided that the guest is here after all.
    pub(super) fn take_back(&self) {
        self.slot.lock().taken_back = true;
    }

    /// Cancels the running migration. When this returns, the guest runs on here, and the migration has put back all
    /// that it took.
    ///
    /// # Errors
    /// A sentence, if no migration is running, the guest is already handed over, or the migration does not stop in time.
    pub fn cancel(&self) -> Result<(), String> {
        match &*self.slot.lock() {
            Slot {
                monitor: Some(monitor),
                running: true,
                ..
            } if serves(monitor.status().status) => return Err(HANDED_OVER.into()),
            Slot {
                monitor: Some(monitor),
                running: true,
                ..
            } => monitor.cancel(),
            _ => return Err("no migration is under way".into()),
        };
        // One that cannot be cancelled is at its end, or was cancelled by another: it is over soon, too.
        let mut slot = self.slot.lock();
        let until = Instant::now() + CANCEL_DELAY;
        // It may go on for a moment after that, to tell a destination that does not listen.
        while slot.running && !slot.is_over() && Instant::now() < until {
            self.ended.wait_for(&mut slot, CANCEL_POLL);
        }
        let state = slot.monitor.as_ref().map(|monitor| monitor.status().status);
        match state {
            Some(MigrationState::Syncing | MigrationState::Completed) if slot.stays => {
                Err("the guest has been saved: only the disk is waited for, and the save can no longer be cancelled".into())
            }
            Some(
                MigrationState::Completed
                | MigrationState::HandedOverUnconfirmed
                | MigrationState::HandedOverInPart,
            ) => {
                Err(HANDED_OVER.into())
            }
            _ if slot.running && !slot.is_over() => Err(
                "the migration has not stopped yet: `lacuna status` shows when it has, and where the guest is".into(),
            ),
            _ => Ok(()),
        }
    }

    /// The report of the last migration, if it completed.
    pub fn report(&self) -> Option<Arc<MigrationReport>> {
        self.settled().report.clone()
    }

    /// The slot. If the state says that the migration is over, waits for its report: the state changes a moment before
    /// the migration's thread ends.
    fn settled(&self) -> MutexGuard<'_, Slot> {
        let mut slot = self.slot.lock();
        let is_settling = |slot: &mut Slot| slot.running && slot.is_over();
        self.ended
            .wait_while_for(&mut slot, is_settling, REPORT_DELAY);
        slot
    }
}
