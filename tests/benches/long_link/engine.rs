// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A migration by the engine over a given connection, of a guest that stands still: it needs no KVM, whose nested
//! guests would take most of an emulated processor.

use std::error::Error;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;

use host_migrator::{
    Connection, DirtyLog, DirtyLogError, GuestRam, LogSource, Migration, MigrationBitmap,
    MigrationParams, MigrationReport, OwnershipRecord, RamRegion, Source, StillMachine, receive,
};
use spec::{PAGE_SIZE, PageRange};

/// Memory is filled and compared so many pages at a time.
const PAGES_AT_ONCE: u64 = 256;

/// Migrates a guest that uses `memory_bytes`, all its memory, and compares what arrives.
///
/// # Errors
/// Those of either side, or that a page is wrong.
pub fn migrate(
    [here, there]: [TcpStream; 2],
    memory_bytes: u64,
) -> Result<MigrationReport, Box<dyn Error>> {
    let [ram, arrived] = [(); 2].map(|()| {
        let region = RamRegion::new(0, memory_bytes)?;
        Ok::<_, Box<dyn Error>>(Arc::new(GuestRam::map(vec![region])?))
    });
    let (ram, arrived) = (ram?, arrived?);
    let mut content = vec![0x5a; (PAGES_AT_ONCE * PAGE_SIZE) as usize];
    for range in ranges(&ram) {
        ram.write(range, &content)?;
    }
    let source = Source::new(Box::new(StillMachine), ram).log(NothingWritten);
    let destination = thread::spawn({
        let arrived = Arc::clone(&arrived);
        let connection = Connection::try_from(there)?;
        move || {
            let ownership = OwnershipRecord::there();
            receive(
                connection,
                &arrived,
                &mut StillMachine,
                &ownership,
                &mut |_| (),
            )
        }
    });
    let connection = Connection::try_from(here)?;
    let migration = Migration::start(source, MigrationParams::default(), connection)?;
    let (_source, report) = migration.join();
    let report = report?;
    destination
        .join()
        .map_err(|_| "the destination panicked")??;
    for range in ranges(&arrived) {
        arrived.read(range, &mut content)?;
        if content.iter().any(|&byte| byte != 0x5a) {
            return Err(format!("a page of {range:?} is wrong").into());
        }
    }
    Ok(report)
}

fn ranges(ram: &GuestRam) -> impl Iterator<Item = PageRange> {
    (0..ram.pages() / PAGES_AT_ONCE)
        .filter_map(|n| PageRange::new(n * PAGES_AT_ONCE, PAGES_AT_ONCE))
}

/// The log of a guest that writes nothing.
struct NothingWritten;

impl DirtyLog for NothingWritten {
    fn source(&self) -> LogSource {
        LogSource::OwnWrites
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, _bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        Ok(0)
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}
