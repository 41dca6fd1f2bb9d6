// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several threads write: no version of a page overtakes another, and a disk that stalls keeps nobody.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use host_migrator::snapshot::{SnapshotWriter, Storage};
use host_migrator::{FileSink, Layout, PAGE_SIZE, Sink, SinkError, SnapshotError, Totals};

use super::disk::{Nowhere, Operation, Watched};
use super::rig::{content, layout, machine_state, range};
use super::software_guest::machine::DESCRIPTION;

/// How long a gate is closed: so long that whoever should wait for it and does not is seen.
const A_WHILE: Duration = Duration::from_millis(50);

/// A disk that writes no page before it is let go.
#[derive(Debug)]
struct Stalled {
    inner: Watched,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Stalled {
    fn new() -> (Self, Arc<Mutex<Vec<Operation>>>, impl FnOnce()) {
        let path = Path::new("nowhere").to_owned();
        let in_place = false;
        let (inner, done) = Watched::new(Box::new(Nowhere { path, in_place }));
        let open = Arc::<(Mutex<bool>, Condvar)>::default();
        let gate = Arc::clone(&open);
        let let_go = move || {
            *gate.0.lock().unwrap() = true;
            gate.1.notify_all();
        };
        (Self { inner, open }, done, let_go)
    }
}

impl Storage for Stalled {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn is_in_place(&self) -> bool {
        self.inner.is_in_place()
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.inner.write(bytes, at)
    }

    fn write_pages(&self, content: &[u8], at: u64) -> io::Result<()> {
        let (open, changed) = &*self.open;
        drop(
            changed
                .wait_while(open.lock().unwrap(), |open| !*open)
                .unwrap(),
        );
        self.inner.write_pages(content, at)
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.inner.read(bytes, at)
    }

    fn give_back(&self, at: u64, length: u64) -> io::Result<()> {
        self.inner.give_back(at, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn publish(&self) -> io::Result<()> {
        self.inner.publish()
    }
}

/// What was done with the page at `pfn` of the first region, in its order.
fn story(done: &[Operation], pfn: u64, pages_at: u64) -> Vec<Option<u8>> {
    let place = pages_at + pfn * PAGE_SIZE;
    let of_page = |operation: &Operation| match operation {
        Operation::Write(at, bytes) => {
            let into = place.checked_sub(*at)? as usize;
            bytes.get(into).copied().map(Some)
        }
        Operation::GiveBack(at, length) => (*at..at + length).contains(&place).then_some(None),
        Operation::Expect(_) | Operation::Sync | Operation::Publish => None,
    };
    done.iter().filter_map(of_page).collect()
}

#[test]
fn a_page_that_changes_while_a_writer_has_it_ends_as_it_was_last() {
    let (disk, done, let_go) = Stalled::new();
    let writer = SnapshotWriter::begin(Box::new(disk), &layout(), DESCRIPTION).unwrap();
    let mut writer = writer.with_writers(3).unwrap();
    let later = thread::spawn(move || {
        thread::sleep(A_WHILE);
        let_go();
    });
    let pages = [5, 6, 7].map(content).concat();
    writer.pages(range(5, 3), &pages).unwrap();
    // Nobody waits for these: they have nothing to do with pages that are on their way.
    writer.remove(range(50, 10)).unwrap();
    writer.pages(range(20, 1), &content(20)).unwrap();
    assert!(!writer.is_drained());
    writer.remove(range(6, 1)).unwrap();
    writer.pages(range(7, 1), &content(70)).unwrap();
    writer.pages(range(6, 1), &content(60)).unwrap();
    let saved = writer.finish(&machine_state(), Totals::default()).unwrap();
    assert_eq!(saved.pages, 4);
    later.join().unwrap();
    let done = done.lock().unwrap();
    let pages_at = done.iter().find_map(|operation| match operation {
        Operation::Write(at, bytes) if *bytes == content(20) => Some(at - 20 * PAGE_SIZE),
        _ => None,
    });
    let of = |pfn| story(&done, pfn, pages_at.unwrap());
    assert_eq!(of(5), [Some(5)]);
    assert_eq!(of(6), [Some(6), None, Some(60)]);
    assert_eq!(of(7), [Some(7), Some(70)]);
}

#[test]
fn a_disk_that_stalls_while_the_guest_is_stopped_lets_it_run_on() {
    let (disk, done, let_go) = Stalled::new();
    let memory = Layout::new(vec![range(0, 100_000)]).unwrap();
    let sink = FileSink::new(Box::new(disk), &memory, DESCRIPTION).unwrap();
    let mut sink = sink.with_writers(2).unwrap();
    sink.begin_switchover(A_WHILE);
    let some = vec![7; 256 * PAGE_SIZE as usize];
    let sent = (0..100).try_for_each(|piece| sink.pages(&[range(piece * 256, 256)], &some));
    match sent {
        Err(SinkError::Snapshot(SnapshotError::Io { source, .. })) => {
            assert_eq!(source.kind(), io::ErrorKind::TimedOut);
        }
        other => panic!("{other:?}"),
    }
    // This does not wait for the disk, either.
    drop(sink);
    let published = |operation: &Operation| matches!(operation, Operation::Publish);
    assert!(!done.lock().unwrap().iter().any(published));
    let_go();
}

#[test]
fn a_writer_that_fails_ends_the_save_with_the_first_reason() {
    let (disk, _, let_go) = Stalled::new();
    let failing = Watched::failing(Box::new(disk), 4, rustix::io::Errno::IO);
    let writer = SnapshotWriter::begin(Box::new(failing), &layout(), DESCRIPTION).unwrap();
    let mut writer = writer.with_writers(4).unwrap();
    let given = (0..20).try_for_each(|pfn| writer.pages(range(pfn, 1), &content(1)));
    let_go();
    let failure = match given {
        Ok(()) => writer.drain().unwrap_err(),
        Err(error) => error,
    };
    let io_error = |error: SnapshotError| match error {
        SnapshotError::Io { source, .. } => source,
        other => panic!("{other}"),
    };
    let expected = Some(rustix::io::Errno::IO.raw_os_error());
    assert_eq!(io_error(failure).raw_os_error(), expected);
    // Whatever is tried afterwards fails, too.
    assert!(writer.check().is_err() && writer.drain().is_err());
    assert!(writer.finish(&machine_state(), Totals::default()).is_err());
}
