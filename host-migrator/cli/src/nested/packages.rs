// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs and packages of the distribution that the lane needs.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

/// The beginning of the names of Debian's kernel packages.
pub const KERNEL_PREFIX: &str = "linux-image-";
/// The package that depends on the current generic kernel. The "cloud" kernel has no KVM.
const KERNEL_PACKAGE: &str = "linux-image-amd64";

/// A program or package is missing; the message says what to install.
#[derive(Debug, Error)]
pub enum PackageError {
    /// A program is not there.
    #[error("{program} is missing: install Debian's package {package} or its equivalent")]
    Program {
        /// Its name.
        program: &'static str,
        /// Where Debian has it.
        package: &'static str,
    },
    /// The kernel package could not be fetched or unpacked.
    #[error(
        "a Linux guest needs the kernel of Debian's package {KERNEL_PACKAGE}, but `{command}` failed \
         ({reason}): let apt-get reach a Debian mirror once, or copy the cache folder of a machine that did"
    )]
    Kernel {
        /// What was run.
        command: String,
        /// The last line of its error output.
        reason: String,
    },
}

/// An unpacked kernel package.
#[derive(Debug)]
pub struct KernelPackage {
    /// The package's name, with the kernel's version in it.
    pub name: String,
    /// The root of its files.
    pub folder: PathBuf,
}

/// The path of `program`, which Debian has in `package`.
///
/// # Errors
/// [`PackageError::Program`] if it is in no folder of `PATH`.
pub fn program(program: &'static str, package: &'static str) -> Result<PathBuf, PackageError> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or(PackageError::Program { program, package })
}

/// Fetches the package of Debian's current generic kernel and unpacks it in `folder`. Nothing is
/// installed, and no privilege is needed unless apt has no package lists yet.
///
/// # Errors
/// [`PackageError::Kernel`].
pub fn unpack_kernel(folder: &Path) -> Result<KernelPackage, PackageError> {
    let (name, file) = match download_kernel(folder) {
        Ok(downloaded) => downloaded,
        // There are no lists, or old ones with a package that the mirror no longer has.
        Err(_) => {
            run(apt_get().arg("update"))?;
            download_kernel(folder)?
        }
    };
    let unpacked = folder.join("package");
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(file)
        .arg(&unpacked))?;
    Ok(KernelPackage {
        name,
        folder: unpacked,
    })
}

/// The name of the kernel's package, and its file in `folder`.
fn download_kernel(folder: &Path) -> Result<(String, PathBuf), PackageError> {
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", KERNEL_PACKAGE]);
    let text = run(&mut depends)?;
    let name = kernel_in(&text).ok_or_else(|| failure(&depends, "it lists no kernel"))?;
    let mut download = apt_get();
    download.arg("download").arg(name).current_dir(folder);
    run(&mut download)?;
    let file = deb_file(folder)
        .map_err(|error| failure(&download, error))?
        .ok_or_else(|| failure(&download, "it left no file"))?;
    Ok((name.to_owned(), file))
}

/// `apt-get`, with a time limit for a mirror that does not answer.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args([
        "--quiet",
        "-o",
        "Acquire::http::Timeout=30",
        "-o",
        "Acquire::Retries=1",
    ]);
    command
}

/// The kernel among the dependencies that `apt-cache depends` prints.
fn kernel_in(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(KERNEL_PREFIX))
}

fn deb_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Runs a command to its end. Returns what it printed, if it succeeds.
fn run(command: &mut Command) -> Result<String, PackageError> {
    let output = command.output().map_err(|error| failure(command, error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rfind(|line| !line.trim().is_empty());
    Err(failure(command, last.unwrap_or("it gave no reason")))
}

fn failure(command: &Command, reason: impl ToString) -> PackageError {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    PackageError::Kernel {
        command: words.join(" "),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_among_the_dependencies() {
        let text = "linux-image-amd64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-amd64\n  Conflicts: x\n";
        assert_eq!(kernel_in(text), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(kernel_in("N: Unable to locate package"), None);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = program("no-such-program", "a-package").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-program is missing: install Debian's package a-package or its equivalent"
        );
    }

    #[test]
    fn a_failed_command_tells_its_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"]));
        assert!(error.unwrap_err().to_string().contains("failed (two)"));
    }
}
