// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an inflation costs with QEMU's own device and with ours, for the same guest in the same QEMU.
//!
//! What counts is processor time that is not the guest's own: QEMU's main thread, which runs QEMU's devices and
//! interrupts, and our device's process. The runs of the two take turns.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::costs::Costs;
use crate::device::OwnDevice;
use crate::qemu::Qemu;
use crate::{MIB, PATIENCE};

/// How much memory is inflated.
const INFLATED: u64 = 1024 * MIB;
/// How often the size of the balloon is polled.
const POLL: Duration = Duration::from_millis(5);

/// Whose balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Qemu,
    Ours,
}

/// What one inflation cost.
#[derive(Clone, Copy, Debug)]
struct Figures {
    wall_ms: f64,
    /// Processor time that is not the guest's.
    host_ms: f64,
    /// Processor time of the guest's processor, exits included.
    guest_ms: f64,
    /// Memory that the host got back.
    given_back_mib: f64,
}

/// Inflates the balloons of guests with QEMU's device and with ours, in turns, and prints the ratio of the medians.
pub fn compare(program: &Path, runs: u32) -> Result<(), Box<dyn Error>> {
    println!("inflating 1 GiB   wall ms   host CPU ms  guest CPU ms   given back MiB");
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for run in 0..2 * runs {
        let side = if run % 2 == 0 { Side::Qemu } else { Side::Ours };
        let figures = inflate(side, program)?;
        show(&format!("{side:?}"), figures);
        match side {
            Side::Qemu => theirs.push(figures),
            Side::Ours => ours.push(figures),
        }
    }
    let (theirs, ours) = (median(&theirs), median(&ours));
    show("Qemu, median", theirs);
    show("Ours, median", ours);
    println!(
        "ours / QEMU's: wall {:.2}, host CPU {:.2}, given back {:.3}",
        ours.wall_ms / theirs.wall_ms,
        ours.host_ms / theirs.host_ms,
        ours.given_back_mib / theirs.given_back_mib
    );
    Ok(())
}

/// Boots a guest, inflates its balloon, and measures that.
fn inflate(side: Side, program: &Path) -> Result<Figures, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let device = match side {
        Side::Qemu => None,
        Side::Ours => Some(OwnDevice::start(folder.path(), &[])?),
    };
    let socket = device.as_ref().map(OwnDevice::socket);
    let mut qemu = Qemu::start(program, folder.path(), socket.as_deref(), "")?;
    qemu.wait_until_ready(PATIENCE)?;
    let mut device = device.map(OwnDevice::connect).transpose()?;

    let pid = qemu.pid();
    let device_pid = device.as_ref().map(OwnDevice::pid);
    let before = Costs::now(pid, device_pid)?;
    let began = Instant::now();
    match &mut device {
        None => qemu.set_target(INFLATED)?,
        Some(device) => device.set_target(INFLATED)?,
    }
    loop {
        let inflated = match &mut device {
            None => qemu.inflated()?,
            Some(device) => device.inflated()?,
        };
        if inflated >= INFLATED {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("only {} MiB were inflated", inflated / MIB).into());
        }
        std::thread::sleep(POLL);
    }
    let wall_ms = began.elapsed().as_secs_f64() * 1000.0;
    let after = Costs::now(pid, device_pid)?;
    Ok(Figures {
        wall_ms,
        host_ms: after.host_ms - before.host_ms,
        guest_ms: after.guest_ms - before.guest_ms,
        given_back_mib: before.memory_mib - after.memory_mib,
    })
}

fn show(name: &str, figures: Figures) {
    println!(
        "{name:<15} {:>9.0} {:>13.1} {:>13.0} {:>16.0}",
        figures.wall_ms, figures.host_ms, figures.guest_ms, figures.given_back_mib
    );
}

fn median(runs: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures {
        wall_ms: of(|f| f.wall_ms),
        host_ms: of(|f| f.host_ms),
        guest_ms: of(|f| f.guest_ms),
        given_back_mib: of(|f| f.given_back_mib),
    }
}
