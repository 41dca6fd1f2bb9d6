// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ours: a whole save by the engine, of a machine that has memory and no processor, and a restore.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use host_migrator::{
    FileSink, Migration, MigrationParams, Snapshot, SnapshotTarget, Source, StillMachine,
};

use super::super::BenchError;
use super::super::memory::Destination;
use super::super::record::{Clock, Sample, Took};
use super::arm::Bench;
use crate::control::DirectIoName;

/// Saves the content by `channels` threads; if it `checks`, compares what is in the file.
pub(super) fn measure_save(
    bench: &Bench,
    channels: u16,
    direct_io: DirectIoName,
    checks: bool,
) -> Result<Sample, BenchError> {
    let path = bench.nothing("snapshot")?;
    let took = save(bench, &path, channels, direct_io)?;
    let file = fs::metadata(&path).map_err(BenchError::io("cannot look at the file"))?;
    let file_bytes = Some(file.len());
    if !checks {
        return Ok(Sample {
            file_bytes,
            ..Sample::new(took, &bench.content, None)?
        });
    }
    let destination = Destination::new(&bench.content, false)?;
    let snapshot = Snapshot::open(&target(&path))?.with_direct_io(DirectIoName::Auto.into())?;
    snapshot.load(destination.ram(), threads(2), &|_| ())?;
    Ok(Sample {
        file_bytes,
        ..Sample::new(took, &bench.content, Some(&destination))?
    })
}

/// Saves the content into a new file at `path`.
pub(super) fn save(
    bench: &Bench,
    path: &Path,
    channels: u16,
    direct_io: DirectIoName,
) -> Result<Took, BenchError> {
    let ram = bench.content.ram();
    let mut source = Source::new(Box::new(StillMachine), ram.clone());
    let params = MigrationParams::default();
    let clock = Clock::start();
    let sink = FileSink::create(&target(path), direct_io.into(), ram.layout(), &[])?;
    let mut sink = sink.with_writers(channels.into())?;
    Migration::copy(&mut source, &params, &mut sink)?;
    Ok(clock.took())
}

/// Restores the content by `channels` threads, and compares it.
pub(super) fn restore(
    bench: &Bench,
    channels: u16,
    direct_io: DirectIoName,
) -> Result<Sample, BenchError> {
    let path = bench.cold_snapshot()?;
    let destination = Destination::new(&bench.content, false)?;
    let clock = Clock::start();
    let snapshot = Snapshot::open(&target(&path))?.with_direct_io(direct_io.into())?;
    snapshot.load(destination.ram(), threads(channels.into()), &|_| ())?;
    Sample::new(clock.took(), &bench.content, Some(&destination))
}

/// The snapshot at `path`.
pub(super) fn target(path: &Path) -> SnapshotTarget {
    SnapshotTarget {
        path: path.to_owned(),
        offset: None,
    }
}

fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}
