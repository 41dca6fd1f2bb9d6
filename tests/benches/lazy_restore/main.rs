// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How soon a guest runs that is restored lazily, and how long it waits for a page.
//!
//! `cargo bench -p tests --bench lazy_restore [-- --runs N] [--folder PATH]`; the folder is where the snapshots are, and has room for
//! 600 MiB.
//!
//! | module | question |
//! |---|---|
//! | [`start`] | how long is it from the command to the guest's first instruction, for guests of 1, 4 and 16 GiB? |
//! | [`faults`] | how long does a thread wait for a page, beside the barest answer that there can be, and beside the loader? |
//! | [`scale`] | do more descriptors answer several vCPUs faster than one? |

mod faults;
mod scale;
mod start;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The machines are this program again, as the command `lacuna`.
    if std::env::args()
        .nth(1)
        .is_some_and(|job| !job.starts_with('-'))
    {
        return lacuna::main();
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Box<dyn Error>> {
    let (runs, parent) = options(std::env::args().skip(1))?;
    if let Err(error) = host_migrator::paging::Userfaultfd::open(false) {
        println!("skipped: {error}");
        return Ok(());
    }
    let folder = match parent {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    faults::measure(folder.path(), runs)?;
    println!();
    scale::measure(folder.path(), runs)?;
    println!();
    start::measure(folder.path(), runs)
}

fn options(args: impl Iterator<Item = String>) -> Result<(usize, Option<PathBuf>), Box<dyn Error>> {
    let (mut runs, mut folder) = (5, None);
    // Cargo itself adds --bench.
    let mut args = args.filter(|arg| arg != "--bench");
    while let Some(flag) = args.next() {
        match (flag.as_str(), args.next()) {
            ("--runs", Some(number)) => runs = number.parse()?,
            ("--folder", Some(path)) => folder = Some(path.into()),
            _ => return Err("usage: lazy_restore [--runs N] [--folder PATH]".into()),
        }
    }
    Ok((runs, folder))
}

/// The middle of `values`.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
