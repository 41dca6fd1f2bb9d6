// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the disk can do: dd moves memory to a file and back without the page cache, a block at a time.

use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use host_migrator::Snapshot;

use super::super::BenchError;
use super::super::memory::Destination;
use super::super::record::{Sample, Took};
use super::arm::Bench;
use super::engine::target;

/// Writes the content to a new file, in blocks of `block` bytes.
pub(super) fn write(bench: &Bench, block: u64) -> Result<Sample, BenchError> {
    let to = bench.nothing("dd")?;
    let from = name_of(bench.content.file());
    let took = dd(&[
        format!("if={from}"),
        format!("of={}", to.display()),
        format!("bs={block}"),
        "oflag=direct".into(),
    ])?;
    bench.nothing("dd")?;
    Sample::new(took, &bench.content, None)
}

/// Reads the pages of the snapshot into new memory, in blocks of `block` bytes.
pub(super) fn read(bench: &Bench, block: u64) -> Result<Sample, BenchError> {
    let from = bench.cold_snapshot()?;
    let pages_at = Snapshot::open(&target(&from))?.places().pages_at;
    let destination = Destination::new(&bench.content, false)?;
    let took = dd(&[
        format!("if={}", from.display()),
        format!("of={}", name_of(destination.file())),
        format!("bs={block}"),
        format!("skip={pages_at}"),
        format!("count={}", bench.content.pages().bytes()),
        "iflag=direct,skip_bytes,count_bytes".into(),
        "conv=notrunc".into(),
    ])?;
    Sample::new(took, &bench.content, Some(&destination))
}

/// Runs dd. Its time is what it says itself, without its start.
fn dd(args: &[String]) -> Result<Took, BenchError> {
    let ran = Command::new("dd")
        .args(args)
        .env("LC_ALL", "C")
        .output()
        .map_err(BenchError::io("cannot run dd"))?;
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    let seconds = seconds(&said).filter(|_| ran.status.success());
    let seconds = seconds.ok_or_else(|| BenchError::Program {
        program: "dd",
        said: said.trim().into(),
    })?;
    Ok(Took {
        time: Duration::from_secs_f64(seconds),
        cpu: None,
    })
}

/// The time in dd's last line: `... copied, 0.25 s, 2.1 GB/s`.
fn seconds(said: &str) -> Option<f64> {
    let last = said.lines().next_back()?;
    let mut parts = last.split(", ");
    let seconds = parts.find_map(|part| part.strip_suffix(" s")?.parse().ok());
    seconds.filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0)
}

/// A name by which dd can open a file of this process.
fn name_of(file: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn the_time_is_found_in_what_dd_says() {
        let said = "1+0 records in\n1+0 records out\n4096 bytes (4.1 kB, 4.0 KiB) copied, 6.69e-05 s, 61.2 MB/s\n";
        assert_eq!(seconds(said), Some(6.69e-5));
        assert_eq!(
            seconds("dd: failed to open 'x': No such file or directory"),
            None
        );
        assert_eq!(seconds(""), None);
    }
}
