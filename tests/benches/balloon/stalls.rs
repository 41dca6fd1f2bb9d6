// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long the guest is delayed while it reports and hints, measured in the guest.
//!
//! A process in the guest works every 10 ms and reports once a second the longest delay of its turn. This is compared for
//! three cases: the balloon is idle, the guest reports what it has freed, and the guest hints it.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use crate::PATIENCE;
use crate::device::OwnDevice;
use crate::qemu::Qemu;

/// How long the guest's reports are read.
const LISTEN: Duration = Duration::from_secs(12);

/// What the guest does besides its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Besides {
    Nothing,
    Reports,
    Hints,
}

/// The cases, with kernel arguments. Hinting runs in the guest's driver, which yields only as the kernel's preemption model
/// allows, and which first zeroes every block if the kernel zeroes what it allocates.
const CASES: [(&str, Besides, &str); 5] = [
    ("nothing", Besides::Nothing, ""),
    ("reports", Besides::Reports, ""),
    ("hints", Besides::Hints, ""),
    ("hints", Besides::Hints, "init_on_alloc=0"),
    ("hints", Besides::Hints, "preempt=full"),
];

/// Runs a guest for each case and prints its longest gaps.
pub fn compare(program: &Path) -> Result<(), Box<dyn Error>> {
    println!("longest gap a second      median ms   longest ms   pages");
    for (name, besides, argument) in CASES {
        let (mut gaps, pages) = gaps(program, besides, argument)?;
        gaps.sort_unstable();
        let ms = |gap: Option<&u64>| gap.map_or(0.0, |gap| *gap as f64 / 1000.0);
        let (median, longest) = (ms(gaps.get(gaps.len() / 2)), ms(gaps.last()));
        let name = format!("{name} {argument}");
        println!("{name:<25} {median:>9.1} {longest:>12.1} {pages:>7}");
    }
    Ok(())
}

/// The longest gap of each second, in microseconds, and the pages that were reported or hinted.
fn gaps(
    program: &Path,
    besides: Besides,
    argument: &str,
) -> Result<(Vec<u64>, u64), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let flags: &[&str] = match besides {
        Besides::Reports => &["--free-page-reporting"],
        Besides::Nothing | Besides::Hints => &[],
    };
    let device = OwnDevice::start(folder.path(), flags)?;
    let mut qemu = Qemu::start(program, folder.path(), Some(&device.socket()), argument)?;
    qemu.wait_until_ready(PATIENCE)?;
    let mut device = device.connect()?;
    if besides == Besides::Hints {
        device.start_hints()?;
    }
    std::thread::sleep(LISTEN);
    let pages = match besides {
        Besides::Nothing => 0,
        Besides::Reports => device.reported()?,
        Besides::Hints => device.hinted()?,
    };
    Ok((qemu.gaps(), pages))
}
