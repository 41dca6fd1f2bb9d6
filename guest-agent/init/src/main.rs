// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first process of the stock Linux guest that the tests migrate.
//!
//! It plays the part of the guest's applications. It loads the kernel's own virtio drivers, and starts the agent if the
//! machine has a port for it. Then it fills memory with stamped pages, frees a part of it, and keeps writing and
//! checking the rest. A page that a migration lost, or that is older than it should be, has a wrong stamp.
//!
//! The kernel's command line sets the sizes and rates ([`workload::Workload`]). Reports on the console are lines of
//! `lacuna-guest:` and a JSON object: one when memory is filled and freed, and then one each second, see
//! [`report::Report`].

mod agent;
mod area;
mod boot;
mod command_line;
mod report;
mod stamped;
mod workload;

use std::convert::Infallible;
use std::error::Error;
use std::thread;
use std::time::Duration;

use report::Report;
use workload::Workload;

/// Never ends: the kernel panics if its first process exits.
fn main() {
    let Err(error) = run();
    Report {
        failure: Some(error.to_string()),
        ..Default::default()
    }
    .print();
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn run() -> Result<Infallible, Box<dyn Error>> {
    boot::mount_file_systems()?;
    boot::load_modules()?;
    let _agent = agent::start()?;
    let workload = Workload::from_command_line(&std::fs::read_to_string("/proc/cmdline")?)?;
    Ok(workload.run()?)
}
