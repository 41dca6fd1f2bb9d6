// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A slow peer is not a dead one: slow links and slow peers are waited for, lost ones are given up.
//!
//! The time limits are short here, so that a test takes seconds instead of half a minute.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::{
    Connection, DirtyLog, DirtyLogError, LogSource, Migration, MigrationBitmap, MigrationError,
    MigrationParams, OwnershipRecord, PageSource, ReceiveError, ReceiveStatus, Source, receive,
};
use software_guest::link::{Link, wire};
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, like};
use software_guest::proxy::{Fault, Wire};
use software_guest::{Guest, Outcome, migrate_over, rounds};

/// How long each side waits for a silent peer. The peer sends four heartbeats in this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longer than the patience.
const LONG: Duration = Duration::from_secs(3);

/// A stopped guest that has written `pages` pages.
fn guest(pages: u64) -> Guest {
    let guest = Guest::new(Memory::new(pages, 0));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    guest
}

fn impatient() -> MigrationParams {
    MigrationParams::default()
        .with_peer_timeout(PATIENCE)
        .with_sources([PageSource::Zero].into_iter().collect())
}

/// Migrates `source` of `guest` between two impatient sides. The destination has `observer`.
fn migrate(
    guest: &Guest,
    source: Source<'static>,
    params: MigrationParams,
    (here, there): (UnixStream, UnixStream),
    mut observer: impl FnMut(&ReceiveStatus) + Send + 'static,
) -> (Result<(), MigrationError>, Result<(), ReceiveError>) {
    let ram = Arc::new(like(&guest.memory.ram));
    let theirs = Arc::clone(&ram);
    let destination = thread::spawn(move || {
        let mut machine = SoftDestination::default();
        let channel = Connection::try_from(there).unwrap().with_patience(PATIENCE);
        let received = receive(
            channel,
            &theirs,
            &mut machine,
            &OwnershipRecord::there(),
            &mut observer,
        );
        assert_eq!(machine.runs, received.is_ok());
        received.map(|_| ())
    });
    let handle = Migration::start(source, params, here.try_into().unwrap()).unwrap();
    let (_, sent) = handle.join();
    let received = destination.join().unwrap();
    if sent.is_ok() {
        assert_eq!(guest.memory.wrong_pages(&ram, None), []);
    }
    (sent.map(|_| ()), received)
}

fn assert_complete(ended: (Result<(), MigrationError>, Result<(), ReceiveError>)) {
    assert!(matches!(ended, (Ok(()), Ok(()))), "{ended:?}");
}

fn assert_exact(guest: &Guest, outcome: &Outcome) {
    assert!(outcome.destination.runs, "{:?}", outcome.sent);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
}

#[test]
fn a_sender_that_keeps_to_32_kib_a_second_is_not_taken_for_dead_and_sends_small_sections() {
    let guest = guest(50);
    let params = impatient().with_max_bandwidth(32 << 10);
    let mut before = 0;
    let small = move |status: &ReceiveStatus| {
        assert!(status.pages - before <= 1, "{status:?}");
        before = status.pages;
    };
    let began = Instant::now();
    let ends = UnixStream::pair().unwrap();
    assert_complete(migrate(&guest, guest.source(), params, ends, small));
    // Not faster than the limit, apart from a small credit.
    let seconds = began.elapsed().as_secs_f64();
    assert!(seconds > 50.0 / 8.0 * 0.95, "{seconds}");
}

#[test]
fn a_link_of_32_kib_a_second_carries_a_guest() {
    let guest = guest(50);
    let link = Link {
        rate: Some(32 << 10),
        ..Link::default()
    };
    let ends = wire(link.clone(), link);
    assert_complete(migrate(&guest, guest.source(), impatient(), ends, |_| ()));
}

#[test]
fn a_link_of_10_ms_carries_a_guest_that_writes() {
    let guest = guest(2000);
    let link = Link {
        delay: Duration::from_millis(10),
        ..Link::default()
    };
    let (here, there) = wire(link.clone(), link);
    let ram = Arc::new(like(&guest.memory.ram));
    let outcome = migrate_over(guest.source(), rounds(4), here, there, ram);
    assert_exact(&guest, &outcome);
}

#[test]
fn a_link_that_carries_nothing_for_8_s_in_a_round_is_waited_for() {
    let guest = guest(2000);
    let link = Link {
        outage: Some((4 << 20, Duration::from_secs(8))),
        ..Link::default()
    };
    let (here, there) = wire(link, Link::default());
    let ram = Arc::new(like(&guest.memory.ram));
    let outcome = migrate_over(guest.source(), MigrationParams::default(), here, there, ram);
    assert_exact(&guest, &outcome);
}

#[test]
fn a_link_that_collapses_as_the_guest_is_stopped_does_not_hold_it() {
    /// Pages that are left for the stopped guest.
    const LEFT: u64 = 4000;
    const SLOW: u64 = 500_000;
    let guest = Arc::new(guest(5000));
    let theirs = Arc::clone(&guest);
    // Written again in the first round, which is the last before the stop.
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            (0..LEFT).for_each(|pfn| theirs.write(pfn));
        }
    });
    let link = Link {
        rate: Some(40_000_000),
        collapse: Some((Arc::clone(&guest.machine), SLOW)),
        ..Link::default()
    };
    let params = MigrationParams::default()
        .with_max_rounds(1)
        .with_early_harvests(0)
        // Every byte that arrives shows that the link is alive.
        .with_peer_timeout(Duration::from_secs(100_000))
        .with_switchover_timeout(Duration::from_secs(1));
    let machine = Arc::clone(&guest.machine);
    let stopped = thread::spawn(move || {
        let wait_while = |stopped| {
            while machine.is_stopped() == stopped {
                thread::sleep(Duration::from_millis(1));
            }
            Instant::now()
        };
        let began = wait_while(false);
        wait_while(true) - began
    });
    let ends = wire(link, Link::default());
    let (sent, received) = migrate(&guest, guest.source(), params, ends, |_| ());
    let error = sent.unwrap_err().to_string();
    assert!(
        error.contains("the switchover was not done in 1s"),
        "{error}"
    );
    assert!(received.is_err());
    assert!(!guest.machine.is_handed_over() && !guest.vcpu_log.is_running());
    // The link would have needed 32 seconds.
    let stopped = stopped.join().unwrap();
    let needed = Duration::from_secs(LEFT * spec::PAGE_SIZE / SLOW);
    assert!(stopped < needed / 2, "{stopped:?}");
}

/// A log whose harvest takes a while.
struct SlowLog(Box<dyn DirtyLog>);

impl DirtyLog for SlowLog {
    fn source(&self) -> LogSource {
        self.0.source()
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        thread::sleep(LONG);
        self.0.start()
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        thread::sleep(LONG);
        self.0.harvest(bitmap)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.0.stop()
    }
}

#[test]
fn a_source_that_is_busy_for_long_between_two_sections_is_not_taken_for_dead() {
    let guest = guest(50);
    let mut source = guest.source();
    source.logs.truncate(1);
    let log = source.logs.pop().unwrap();
    source.logs.push(Box::new(SlowLog(log)));
    let ends = UnixStream::pair().unwrap();
    assert_complete(migrate(&guest, source, impatient(), ends, |_| ()));
}

#[test]
fn a_destination_that_is_busy_for_long_in_a_round_is_not_taken_for_dead() {
    // Once less than socket buffers hold, so that the source waits for an answer; and once more, so that it waits to be
    // read.
    for pages in [10, 5000] {
        let guest = guest(pages);
        let mut waited = false;
        let ends = UnixStream::pair().unwrap();
        let busy = move |status: &ReceiveStatus| {
            if status.pages > 0 && !waited {
                waited = true;
                thread::sleep(LONG);
            }
        };
        assert_complete(migrate(&guest, guest.source(), impatient(), ends, busy));
    }
}

#[test]
fn a_lost_destination_is_noticed_even_if_little_is_sent() {
    let guest = guest(5000);
    let stall = Fault {
        stall_after: Some(20_000),
        ..Fault::default()
    };
    let silent = Fault {
        answers: Some(1),
        ..Fault::default()
    };
    let (_wire, here, there) = Wire::new(stall, silent);
    // At this limit the rest takes more than ten minutes, and socket buffers take much of it at once.
    let params = impatient().with_max_bandwidth(32 << 10);
    let (sent, received) = migrate(&guest, guest.source(), params, (here, there), |_| ());
    let error = sent.unwrap_err().to_string();
    assert!(error.contains("silent for 2s"), "{error}");
    assert!(received.is_err());
    assert!(!guest.machine.is_stopped());
}

#[test]
fn a_source_that_is_silent_is_given_up() {
    let (mut here, there) = UnixStream::pair().unwrap();
    here.write_all(b"LAC").unwrap();
    let channel = Connection::try_from(there).unwrap();
    let channel = channel.with_patience(Duration::from_millis(300));
    let ram = like(&guest(10).memory.ram);
    let mut machine = SoftDestination::default();
    let error = receive(
        channel,
        &ram,
        &mut machine,
        &OwnershipRecord::there(),
        &mut |_| (),
    )
    .unwrap_err();
    assert!(error.to_string().contains("silent for 300ms"), "{error}");
}
