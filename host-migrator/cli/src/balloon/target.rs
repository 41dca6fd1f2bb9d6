// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon target`

use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use spec::control::BalloonStatus;
use spec::{PAGE_SHIFT, PAGE_SIZE};

use super::args::TargetArgs;
use super::device::Device;
use super::{BalloonError, print};
use crate::size::Size;

/// How often the balloon's size is polled.
const POLL: Duration = Duration::from_millis(50);

pub(super) fn target(args: &TargetArgs) -> Result<(), BalloonError> {
    let mut device = Device::connect(&args.device)?;
    let bytes = match (args.balloon, args.guest_memory) {
        (Some(few @ Size(1..PAGE_SIZE)), _) => {
            let text = format!("{few} is less than one page: a balloon holds whole pages");
            return Err(BalloonError::Guest(text));
        }
        (Some(balloon), _) => balloon.0,
        (None, Some(rest)) => given_up(rest.0, &device.status()?)?,
        (None, None) => return Err(BalloonError::Guest("no target was given".into())),
    };
    let pages = u32::try_from(bytes >> PAGE_SHIFT).map_err(|_| {
        let most = Size(u64::from(u32::MAX) * PAGE_SIZE);
        BalloonError::Guest(format!(
            "a balloon holds at most {most}, not {}",
            Size(bytes)
        ))
    })?;
    device.set_target(pages)?;
    let mut status = device.status()?;
    for note in notes(&status) {
        eprintln!("lacuna: {note}");
    }
    if args.wait {
        status = wait(&mut device, args.timeout)?;
    }
    print(
        args.device.json,
        &json!({
            "wanted-bytes": status.wanted_pages * PAGE_SIZE,
            "target-bytes": status.target_pages * PAGE_SIZE,
            "actual-bytes": status.actual_pages * PAGE_SIZE,
        }),
        &format!(
            "{} of {}",
            bytes_of(status.actual_pages),
            bytes_of(status.target_pages)
        ),
    )
}

/// The balloon that leaves the guest with `rest` bytes.
fn given_up(rest: u64, status: &BalloonStatus) -> Result<u64, BalloonError> {
    let memory = status.memory_pages * PAGE_SIZE;
    if !status.connected {
        let text = "no VMM is connected to the balloon device, so the size of the guest's memory is not known";
        return Err(BalloonError::Guest(text.into()));
    }
    memory.checked_sub(rest).ok_or_else(|| {
        let text = format!("the guest has only {}, not {}", Size(memory), Size(rest));
        BalloonError::Guest(text)
    })
}

/// Warnings about a target that has been set.
fn notes(status: &BalloonStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if status.connected && status.wanted_pages > status.target_pages {
        notes.push(format!(
            "the guest is asked for {}: it has no more",
            bytes_of(status.target_pages)
        ));
    }
    if status.negotiated == 0 {
        notes.push(
            "the guest's balloon driver is not up: it gets the target when it comes up".into(),
        );
    }
    notes
}

fn wait(device: &mut Device, timeout: Option<Duration>) -> Result<BalloonStatus, BalloonError> {
    let started = Instant::now();
    let first = device.status()?;
    let bar = bar(&first);
    loop {
        let status = device.status()?;
        if status.negotiated == 0 {
            let text = "the guest's balloon driver is not up, so there is nothing to wait for";
            return Err(BalloonError::Guest(text.into()));
        }
        let state = format!(
            "{} of {}",
            bytes_of(status.actual_pages),
            bytes_of(status.target_pages)
        );
        bar.set_position(first.actual_pages.abs_diff(status.actual_pages));
        bar.set_message(state.clone());
        if status.actual_pages == status.target_pages {
            bar.finish_and_clear();
            return Ok(status);
        }
        let after = started.elapsed();
        if timeout.is_some_and(|timeout| after >= timeout) {
            bar.finish_and_clear();
            return Err(BalloonError::Timeout { after, state });
        }
        thread::sleep(POLL);
    }
}

fn bar(first: &BalloonStatus) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(first.actual_pages.abs_diff(first.target_pages));
    if let Ok(style) = ProgressStyle::with_template("[{elapsed_precise}] {bar:32} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn bytes_of(pages: u64) -> Size {
    Size(pages << PAGE_SHIFT)
}
