// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's save of the same memory: mapped-ram, multifd and direct-io.

use std::fs::File;
use std::time::Duration;

use serde_json::json;

use super::super::BenchError;
use super::super::qemu::{Qemu, failed};
use super::super::record::{Clock, Sample, Took};
use super::arm::Bench;

/// Saves the content by `channels` threads of QEMU. Its time is what it says itself, and that of a sync of its file: QEMU does not sync
/// it, and our save has ended only when the snapshot is on the disk.
///
/// # Errors
/// [`BenchError`] if there is no QEMU, or an older one than 9.0.
pub(super) fn save(bench: &Bench, channels: u16) -> Result<Sample, BenchError> {
    let path = bench.nothing("qemu")?;
    let content = &bench.content;
    let qemu = Qemu::find(channels).map_err(|error| failed(error.to_string()))?;
    let socket = tempfile::tempdir().map_err(BenchError::io("cannot make a folder"))?;
    let bytes = content.pages().bytes();
    let mut machine = qemu.start(&socket.path().join("qmp"), content.file(), bytes, false)?;
    let mapped = json!([{ "capability": "mapped-ram", "state": true }]);
    (machine.qmp).ask(
        "migrate-set-capabilities",
        json!({ "capabilities": mapped }),
    )?;
    (machine.qmp).ask("migrate-set-parameters", json!({ "direct-io": true }))?;
    let uri = format!("file:{}", path.display());
    machine.qmp.ask("migrate", json!({ "uri": uri }))?;
    let report = machine.completed()?;
    let clock = Clock::start();
    let synced = File::open(&path).and_then(|file| file.sync_all());
    synced.map_err(BenchError::io("cannot sync QEMU's file"))?;
    let sync = clock.took().time;
    drop(machine);
    bench.nothing("qemu")?;
    let ms = report["total-time"].as_u64();
    let ms = ms.ok_or_else(|| failed("it does not say how long it took".into()))?;
    let took = Took {
        time: Duration::from_millis(ms.max(1)) + sync,
        cpu: None,
    };
    Sample::new(took, content, None)
}
