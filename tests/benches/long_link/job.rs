// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What runs in the outer machine: plain streams and migrations, over a loopback device with and without delay. Prints
//! a JSON object for each, with the MB/s of both sizes of buffers.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde_json::json;

use crate::engine;
use crate::netem::delay_loopback;

type Failure = Box<dyn Error>;

/// The job's name.
pub const JOB: &str = "long-link";
/// The memory of the guest that is migrated.
pub const GUEST_BYTES: u64 = 256 << 20;

/// How often each case is measured, in turns.
const RUNS: u32 = 3;
/// The delay of each packet. A round trip takes twice as long.
const DELAY: Duration = Duration::from_millis(5);
/// The size that the engine once asked for, for sending and for receiving. The kernel grants less.
const ONCE_SET: usize = 4 << 20;
/// How long a plain stream is written.
const STREAM_TIME: Duration = Duration::from_secs(3);
/// How much is written at once: as much as a section of the migration stream.
const WRITE_BYTES: usize = 1 << 20;
/// The packets' size on Ethernet; the loopback device's own is 64 KiB.
const MTU: &str = "1500";

/// Does the job.
///
/// # Errors
/// If a step fails.
pub fn run() -> Result<(), Failure> {
    fs::write("/sys/class/net/lo/mtu", MTU)?;
    for _ in 0..RUNS {
        for delay in [Duration::ZERO, DELAY] {
            delay_loopback(delay)?;
            let round_trip = fastest_round_trip()?;
            eprintln!("delay {delay:?}: a round trip takes {round_trip:?}");
            let ways: [(_, fn(_) -> _); 2] = [("TcpStream", stream), ("migration", migrate)];
            for (what, way) in ways {
                let kernels: f64 = way(connection(None)?)?;
                let set: f64 = way(connection(Some(ONCE_SET))?)?;
                let measured = json!({
                    "what": what,
                    "round_trip_ms": 2 * delay.as_millis(),
                    "kernels": kernels,
                    "set": set,
                    "ratio": kernels / set,
                });
                println!("{measured}");
            }
        }
    }
    Ok(())
}

/// A connection over the loopback device, whose ends have asked for buffers of `size` once they were connected.
fn connection(size: Option<usize>) -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let ends = [near, listener.accept()?.0];
    for end in &ends {
        end.set_nodelay(true)?;
        if let Some(size) = size {
            sockopt::set_socket_send_buffer_size(end, size)?;
            sockopt::set_socket_recv_buffer_size(end, size)?;
            let granted = sockopt::socket_send_buffer_size(end)?;
            eprintln!("{size} bytes asked for, {granted} granted");
        }
    }
    Ok(ends)
}

/// The shortest of a few round trips, to check the delay.
fn fastest_round_trip() -> io::Result<Duration> {
    let [mut near, mut far] = connection(None)?;
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        near.write_all(&[1])?;
        far.read_exact(&mut [0])?;
        far.write_all(&[1])?;
        near.read_exact(&mut [0])?;
        fastest = fastest.min(begin.elapsed());
    }
    Ok(fastest)
}

/// MB/s of a plain stream.
fn stream([mut near, mut far]: [TcpStream; 2]) -> Result<f64, Failure> {
    let begin = Instant::now();
    let writer = thread::spawn(move || {
        let bytes = vec![0x5a; WRITE_BYTES];
        while begin.elapsed() < STREAM_TIME {
            near.write_all(&bytes)?;
        }
        io::Result::Ok(())
    });
    let mut buffer = vec![0; WRITE_BYTES];
    let mut received = 0;
    loop {
        match far.read(&mut buffer)? {
            0 => break,
            count => received += count,
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    writer.join().map_err(|_| "the writer panicked")??;
    Ok(received as f64 / 1e6 / seconds)
}

/// MB/s of a migration, from its beginning to the guest running at the destination.
fn migrate(ends: [TcpStream; 2]) -> Result<f64, Failure> {
    let report = engine::migrate(ends, GUEST_BYTES)?;
    Ok(report.wire_bytes as f64 / 1e3 / report.total_ms)
}
