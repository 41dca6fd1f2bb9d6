// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The least that a request takes: a few bytes over TCP to another thread, and a page back.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use spec::PAGE_SIZE;
use spec::stream::RUN_BYTES;

use super::super::BenchError;
use super::record::Sample;

/// Asks `rounds` times.
pub(super) fn measure(rounds: u32) -> Result<Sample, BenchError> {
    let mut waits = play(rounds).map_err(BenchError::io("cannot talk to this machine"))?;
    waits.sort_by(f64::total_cmp);
    Ok(Sample::of_waits(&waits))
}

fn play(rounds: u32) -> io::Result<Vec<f64>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut request, page) = ([0; RUN_BYTES], [1; PAGE_SIZE as usize]);
            // Until the other end has gone.
            while far.read_exact(&mut request).is_ok() && far.write_all(&page).is_ok() {}
        });
        let mut page = [0; PAGE_SIZE as usize];
        let mut waits = Vec::with_capacity(rounds as usize);
        for _ in 0..rounds {
            let began = Instant::now();
            near.write_all(&[1; RUN_BYTES])?;
            near.read_exact(&mut page)?;
            waits.push(began.elapsed().as_secs_f64() * 1e6);
        }
        drop(near);
        Ok(waits)
    })
}
