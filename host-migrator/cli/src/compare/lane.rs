// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same comparison in the nested lane, where this machine cannot run the guest itself.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use super::{CompareError, print_line, write_picture};
use crate::args::{CompareArgs, ComparedTransport, GuestKind};
use crate::nested::{self, Lane, Line, Settings};

/// How long a comparison may take in an emulated machine.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// Memory of the outer machine besides that of the two guests: its kernel, its ramdisk, our processes.
const OVERHEAD_BYTES: u64 = 1 << 30;

/// Marks the lines of a picture that the outer machine writes to its console.
const PICTURE: &str = "lacuna-picture: ";

/// Whether this machine cannot run the guest itself.
pub fn is_needed(guest: GuestKind) -> bool {
    if nested::inside() {
        return false;
    }
    match guest {
        GuestKind::Bare => !nested::kvm_usable(),
        GuestKind::Linux => !nested::kvm_runs_linux(),
    }
}

/// Runs this process's own command line again inside the lane.
///
/// # Errors
/// [`CompareError`] if the lane cannot be used, or the comparison failed in it.
pub fn compare(args: &CompareArgs) -> Result<(), CompareError> {
    let io_error = |what| move |source| CompareError::Io { what, source };
    let program = std::env::current_exe().map_err(io_error("cannot find this program"))?;
    // A snapshot file is in the lane's memory, too.
    let copies = match args.transport {
        ComparedTransport::File => 3,
        ComparedTransport::Tcp | ComparedTransport::Unix | ComparedTransport::Local => 2,
    };
    let settings = Settings {
        memory_bytes: args
            .guest
            .memory
            .0
            .saturating_mul(copies)
            .saturating_add(OVERHEAD_BYTES),
        timeout: TIMEOUT,
    };
    if !args.json {
        let mut stderr = io::stderr();
        let _ = writeln!(
            stderr,
            "this machine cannot run the guest itself: it runs in QEMU, on an emulated processor with SVM"
        );
    }
    let mut lane = Lane::prepare(&program, settings)?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut picture = String::new();
    let status = lane.run(&arguments, |line| {
        // If the stream is closed, nobody reads it.
        let _ = match line {
            Line::Output(text) => match text.strip_prefix(PICTURE) {
                Some(line) => writeln!(picture, "{line}").map_err(io::Error::other),
                None => writeln!(io::stdout(), "{text}"),
            },
            Line::Error(text) => writeln!(io::stderr(), "{text}"),
        };
    })?;
    if let Some(path) = args.picture.as_deref().filter(|_| !picture.is_empty()) {
        write_picture(path, &picture)?;
    }
    if status == 0 {
        Ok(())
    } else {
        Err(CompareError::InLane { status })
    }
}

/// Inside the lane: sends the picture `svg` out, to be written to the requested file.
///
/// # Errors
/// [`CompareError::Io`] if standard output is closed.
pub fn send_picture(svg: &str) -> Result<(), CompareError> {
    svg.lines()
        .try_for_each(|line| print_line(&format!("{PICTURE}{line}")))
}
