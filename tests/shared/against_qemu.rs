// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrates the same Linux guest by QEMU and by this program, one after the other on the same machine. If KVM cannot run the
//! guest here, QEMU runs with KVM in the outer machine of the nested lane.
//!
//! The migrations are made by the job `examples/lacuna-under-test/against_qemu`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lacuna::nested::{self, Lane, Line, Settings};
use serde_json::Value;

use crate::qemu_installation::Installation;

/// The job's name.
const JOB: &str = "against-qemu";
/// The separator before the arguments of each comparison.
const ONE_COMPARISON: &str = "+";
/// The environment variable that names another QEMU to compare with.
const VARIABLE: &str = "LACUNA_QEMU";
/// Where QEMU is in the outer machine: program, libraries and firmware in one folder.
const PLACE: &str = "/qemu";
/// Files that a machine without graphics and network needs from QEMU's data folders.
const FIRMWARE: [&str; 4] = [
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
];
/// Memory of the outer machine besides that of the two guests.
const OVERHEAD_BYTES: u64 = 1 << 30;
/// A time limit for all migrations of a guest that only a hang exceeds.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A QEMU that can be copied to where the guests run.
pub struct Peer {
    version: String,
    /// The name of each file, and its path here.
    files: Vec<(String, PathBuf)>,
}

impl Peer {
    /// The QEMU that `LACUNA_QEMU` names, a new one, or else this machine's own.
    ///
    /// # Errors
    /// A sentence about what is missing.
    pub fn find() -> Result<Self, String> {
        nested::available().map_err(|error| error.to_string())?;
        let qemu = match env::var_os(VARIABLE) {
            Some(program) => Installation::Here(program.into()),
            None => Installation::find_or_fetch().or_else(|why| Installation::own().ok_or(why))?,
        };
        Ok(Self {
            version: qemu.version()?,
            files: files(&qemu)?,
        })
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Runs the job in `program`: QEMU without and with its free page hints, then `lacuna compare` with each of
    /// `comparisons`. `common` are arguments of `compare` for the guest and the limits of all migrations. Returns a JSON
    /// object for each migration.
    ///
    /// # Errors
    /// A sentence about what failed.
    pub fn migrate(
        &self,
        program: &Path,
        guest_bytes: u64,
        common: &[&str],
        comparisons: &[&[&str]],
    ) -> Result<Vec<Value>, String> {
        let mut arguments = common.to_vec();
        for comparison in comparisons {
            arguments.push(ONE_COMPARISON);
            arguments.extend(*comparison);
        }
        let (status, out, err) = if nested::kvm_runs_linux() {
            self.run_here(program, &arguments)?
        } else {
            self.run_in_lane(program, guest_bytes, &arguments)?
        };
        if status != Some(0) {
            return Err(format!("the job failed: {err}"));
        }
        let lines = out.lines().filter(|line| line.starts_with('{'));
        let values: Result<Vec<Value>, _> = lines.map(serde_json::from_str).collect();
        values.map_err(|error| format!("the job's output is not JSON ({error}): {out}"))
    }

    fn run_here(&self, program: &Path, arguments: &[&str]) -> Result<Said, String> {
        let place = tempfile::tempdir().map_err(|error| error.to_string())?;
        for (name, file) in &self.files {
            let file = fs::canonicalize(file).map_err(|error| error.to_string())?;
            symlink(file, place.path().join(name)).map_err(|error| error.to_string())?;
        }
        let output = Command::new(program)
            .args([OsString::from(JOB), place.path().into()])
            .args(arguments)
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }

    fn run_in_lane(
        &self,
        program: &Path,
        guest_bytes: u64,
        arguments: &[&str],
    ) -> Result<Said, String> {
        let settings = Settings {
            memory_bytes: 2 * guest_bytes + OVERHEAD_BYTES,
            timeout: PATIENCE,
        };
        let files: Vec<_> = self
            .files
            .iter()
            .map(|(name, file)| (format!("{PLACE}/{name}"), file.clone()))
            .collect();
        let arguments = [&[JOB, PLACE], arguments].concat();
        let (mut out, mut err) = (String::new(), String::new());
        let run = || {
            let mut lane = Lane::prepare(program, settings)?;
            lane.bring(&files)?;
            lane.run(&arguments, |line| match line {
                Line::Output(line) => out.extend([line, "\n"]),
                Line::Error(line) => {
                    // The job also prints its progress.
                    eprintln!("{line}");
                    err.extend([line, "\n"]);
                }
            })
        };
        let status = run().map_err(|error: nested::NestedError| error.to_string())?;
        Ok((Some(status), out, err))
    }
}

/// An exit status, output and errors.
type Said = (Option<i32>, String, String);

/// The files of `qemu`: the program, its libraries and dynamic linker, and firmware.
fn files(qemu: &Installation) -> Result<Vec<(String, PathBuf)>, String> {
    let says = |command: &mut Command| {
        let output = command.output().map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // glibc's dynamic linker: lists the libraries instead of starting the program.
    let traced = says(qemu.command().env("LD_TRACE_LOADED_OBJECTS", "1"))?;
    // `name => /path (address)`, or `/path (address)` for the linker.
    let libraries = traced.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.rfind(|word| word.starts_with('/'))
    });
    let mut files: Vec<PathBuf> = libraries.map(PathBuf::from).collect();
    files.push(qemu.program());

    let folders = says(qemu.command().args(["-L", "help"]))?;
    for name in FIRMWARE {
        let mut places = folders.lines().map(|folder| Path::new(folder).join(name));
        let file = places.find(|file| file.is_file());
        files.push(file.ok_or_else(|| format!("QEMU's {name} is missing"))?);
    }
    let named = |file: PathBuf| Some((file.file_name()?.to_str()?.to_owned(), file));
    Ok(files.into_iter().filter_map(named).collect())
}
