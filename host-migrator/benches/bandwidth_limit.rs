// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How well a migration keeps to its bandwidth limit: on average, and over every second of it.
//!
//! `cargo bench -p host-migrator --bench bandwidth_limit`
//!
//! A proxy on each connection notes what passes and when. No second can be nearer to the limit than a section: at 32 KiB a
//! second that is one page, an eighth of it.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use host_migrator::{
    Connection, GuestRam, Migration, MigrationParams, OwnershipRecord, RamRegion, Source,
    StillMachine, receive,
};
use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};

const SECOND: Duration = Duration::from_secs(1);
/// How long each measurement takes at its limit.
const SECONDS: u64 = 5;
/// The most memory that is moved.
const MOST: u64 = 2 << 30;
/// Left out at both ends: introduction, and the end of the round, whose last section knows no limit.
const EDGE: Duration = Duration::from_millis(200);

/// Bytes, and when they passed.
type Passed = Vec<(Instant, usize)>;

fn main() {
    println!("limit B/s    channels  mean  slowest  fastest second  a section");
    for limit in [32 << 10, 1 << 20, 30 << 20, 125_000_000, 400_000_000] {
        for channels in [1, 2, 8] {
            let passed = migrate(limit, channels);
            let (mean, slowest, fastest) = kept(&passed, limit);
            let section = (limit / 50).clamp(PAGE_SIZE, 1 << 20) as f64 / limit as f64;
            println!(
                "{limit:<12} {channels:<9} {mean:.3} {slowest:.3}    {fastest:.3}           {section:.3}"
            );
        }
    }
}

/// Moves memory at `limit` bytes a second. Returns what passed, in the order of time.
fn migrate(limit: u64, channels: u32) -> Passed {
    let bytes = (limit * SECONDS).min(MOST).next_multiple_of(PAGE_SIZE);
    let memory = || Arc::new(GuestRam::map(vec![RamRegion::new(0, bytes).unwrap()]).unwrap());
    let (ram, theirs) = (memory(), memory());
    fill(&ram);
    let connections = if channels > 1 { 1 + channels } else { 1 };
    let wires: Vec<_> = (0..connections).map(|_| wire()).collect();
    let (mut near, mut far, mut proxies) = (Vec::new(), Vec::new(), Vec::new());
    for (a, b, proxy) in wires {
        near.push(a);
        far.push(b);
        proxies.push(proxy);
    }
    let destination = thread::spawn(move || {
        let ownership = OwnershipRecord::there();
        let observer = &mut |_: &_| ();
        receive(
            joined(far),
            &theirs,
            &mut StillMachine,
            &ownership,
            observer,
        )
        .unwrap();
    });
    let mut source = Source::new(Box::new(StillMachine), ram);
    let params = MigrationParams::default()
        .with_max_bandwidth(limit)
        .with_multifd_channels(channels);
    Migration::new(joined(near), params)
        .run(&mut source)
        .unwrap();
    destination.join().unwrap();
    let mut passed: Passed = (proxies.into_iter())
        .flat_map(|proxy| proxy.join().unwrap())
        .collect();
    passed.sort_by_key(|(at, _)| *at);
    passed
}

fn fill(ram: &GuestRam) {
    let mut random = Random::new(1);
    let mut page = [0; PAGE_SIZE as usize];
    for pfn in 0..ram.pages() {
        page[..8].copy_from_slice(&random.next().to_le_bytes());
        page[8] = 1;
        ram.write(PageRange::new(pfn, 1).unwrap(), &page).unwrap();
    }
}

fn joined(streams: Vec<UnixStream>) -> Connection {
    let mut connections = (streams.into_iter()).map(|stream| Connection::try_from(stream).unwrap());
    connections.next().unwrap().with_more(connections)
}

/// A connection with a proxy in it, which returns what passed on the way to the destination.
fn wire() -> (UnixStream, UnixStream, JoinHandle<Passed>) {
    let (near, mut from_source) = UnixStream::pair().unwrap();
    let (mut to_destination, far) = UnixStream::pair().unwrap();
    let (mut back_from, mut back_to) = (
        to_destination.try_clone().unwrap(),
        from_source.try_clone().unwrap(),
    );
    thread::spawn(move || {
        let _ = std::io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(std::net::Shutdown::Write);
    });
    let proxy = thread::spawn(move || {
        let (mut passed, mut bytes) = (Vec::new(), vec![0; 256 << 10]);
        loop {
            match from_source.read(&mut bytes) {
                Ok(0) | Err(_) => {
                    let _ = to_destination.shutdown(std::net::Shutdown::Write);
                    return passed;
                }
                Ok(count) => {
                    passed.push((Instant::now(), count));
                    if to_destination.write_all(&bytes[..count]).is_err() {
                        return passed;
                    }
                }
            }
        }
    });
    (near, far, proxy)
}

/// The mean rate, and those of the slowest and the fastest second, as parts of `limit`.
fn kept(passed: &Passed, limit: u64) -> (f64, f64, f64) {
    let (first, last) = (passed[0].0 + EDGE, passed[passed.len() - 1].0 - EDGE);
    let within = |from: Instant, to: Instant| -> f64 {
        let inside = passed.iter().filter(|(at, _)| from <= *at && *at < to);
        inside.map(|(_, bytes)| *bytes as f64).sum()
    };
    let limit = limit as f64;
    let mean = within(first, last) / (last - first).as_secs_f64() / limit;
    let (mut slowest, mut fastest) = (f64::MAX, 0.0_f64);
    let mut from = first;
    while from + SECOND <= last {
        let rate = within(from, from + SECOND) / limit;
        (slowest, fastest) = (slowest.min(rate), fastest.max(rate));
        from += SECOND / 20;
    }
    (mean, slowest, fastest)
}
