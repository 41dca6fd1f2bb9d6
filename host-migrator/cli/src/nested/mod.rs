// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The nested lane: a stock Linux guest migrates on a machine whose KVM cannot run one.
//!
//! ```text
//! this machine ── any x86-64, no VMX or SVM needed
//! └─ outer machine: QEMU's TCG emulates a processor with SVM; Debian's kernel with kvm_amd
//!    ├─ lacuna: the same command line again, with LACUNA_NESTED=1
//!    ├─ source guest: Debian's kernel with its own virtio_balloon driver
//!    └─ destination guest
//! ```
//!
//! [`Lane::prepare`] gathers the parts, [`Lane::run`] boots the outer machine for one command line.
//! [`guest_files`] returns the same Linux guest for machines that run it directly, and [`pci_guest_files`] returns its
//! kernel and drivers for other VMMs.

pub mod cpio;
mod decompress;
pub mod elf;
mod image;
mod kernel;
mod machine;
mod modules;
mod packages;
mod standstill;

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use thiserror::Error;

use kernel::Kernel;
pub use kernel::{KernelError, cache_folder};
use machine::Machine;
pub use machine::{Line, MachineError, Settings};
pub use packages::{PackageError, program};

/// How often a job is begun whose machine stands still.
const MOST_TRIES: u32 = 3;
/// Set to 1 for commands that run in the outer machine.
const NESTED_VARIABLE: &str = "LACUNA_NESTED";
/// Variables that the command in the outer machine gets from this process.
const PASSED_VARIABLES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LOG"];

/// Why the nested lane, or the Linux guest, cannot be used.
#[derive(Debug, Error)]
pub enum NestedError {
    /// The initial ramdisks could not be made.
    #[error("making the initial ramdisk: {0}")]
    Image(#[from] io::Error),
    /// There is no kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The outer machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A program is missing.
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// Whether this process runs in the outer machine of a lane.
pub fn inside() -> bool {
    env::var_os(NESTED_VARIABLE).is_some()
}

/// Whether this user may use KVM here. KVM runs the bare guest even without VMX and SVM.
pub fn kvm_usable() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

/// Whether KVM runs a stock Linux guest: this user may use it, and the processor has VMX or SVM. Without them KVM
/// interprets instructions, and does not know all that a kernel uses.
pub fn kvm_runs_linux() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    has_virtualization(&cpu) && kvm_usable()
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_ascii_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

/// What boots the Linux guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFiles {
    /// The kernel: an ELF file.
    pub kernel: PathBuf,
    /// The initial ramdisk, with the guest's first process and the virtio drivers.
    pub initrd: PathBuf,
}

/// The Linux guest's files: in the outer machine those in its ramdisk, elsewhere those in the cache, which is filled
/// first if it is empty.
///
/// # Errors
/// [`NestedError`], in one sentence that says what to do.
pub fn guest_files() -> Result<GuestFiles, NestedError> {
    if inside() {
        return Ok(GuestFiles {
            kernel: image::GUEST_KERNEL.into(),
            initrd: image::GUEST_INITRD.into(),
        });
    }
    let kernel = Kernel::find_or_fetch()?;
    let initrd = kernel.keep("guest.cpio", &image::guest_initrd(&kernel)?)?;
    Ok(GuestFiles {
        kernel: kernel.image(),
        initrd,
    })
}

/// What boots a Linux guest whose virtio devices are on PCI: the same kernel, and an initial ramdisk with the drivers
/// only. They are in the folder `modules`, and the file `list` has their load order. The caller appends a first
/// process; the ramdisk of [`guest_files`] may be put in front.
///
/// # Errors
/// As of [`guest_files`].
pub fn pci_guest_files() -> Result<GuestFiles, NestedError> {
    if inside() {
        return Ok(GuestFiles {
            kernel: image::GUEST_KERNEL.into(),
            initrd: image::PCI_GUEST_INITRD.into(),
        });
    }
    let kernel = Kernel::find_or_fetch()?;
    let initrd = kernel.keep("pci-guest.cpio", &image::pci_guest_initrd(&kernel)?)?;
    Ok(GuestFiles {
        kernel: kernel.image(),
        initrd,
    })
}

/// Whether this machine can run a nested lane. Fetches the kernel if the cache has none.
///
/// # Errors
/// [`NestedError`], in one sentence that says what to install.
pub fn available() -> Result<(), NestedError> {
    Parts::gather().map(drop)
}

/// What the lane uses of this machine.
#[derive(Debug)]
struct Parts {
    qemu: PathBuf,
    /// `setpriv`, by which QEMU ends when this process ends.
    setpriv: PathBuf,
    busybox: PathBuf,
    kernel: Kernel,
}

impl Parts {
    fn gather() -> Result<Self, NestedError> {
        Ok(Self {
            qemu: packages::program("qemu-system-x86_64", "qemu-system-x86")?,
            setpriv: packages::program("setpriv", "util-linux")?,
            busybox: packages::program("busybox", "busybox-static")?,
            kernel: Kernel::find_or_fetch()?,
        })
    }
}

/// A nested lane, ready to run commands one after the other.
#[derive(Debug)]
pub struct Lane {
    settings: Settings,
    parts: Parts,
    /// The outer machine's initial ramdisk. The file has no name, so it disappears however this process ends.
    initrd: File,
    /// Its bytes without a job.
    initrd_bytes: u64,
}

impl Lane {
    /// Gathers the parts of a lane that runs the executable `command` (this one, or `lacuna` in a test).
    ///
    /// # Errors
    /// [`NestedError`], in one sentence that says what to install.
    pub fn prepare(command: &Path, settings: Settings) -> Result<Self, NestedError> {
        let parts = Parts::gather()?;
        let initrd = tempfile::tempfile()?;
        image::outer_initrd(
            BufWriter::new(&initrd),
            &parts.kernel,
            &parts.busybox,
            command,
        )?;
        let initrd_bytes = initrd.metadata()?.len();
        Ok(Self {
            settings,
            parts,
            initrd,
            initrd_bytes,
        })
    }

    /// Puts more files into the outer machine. Each is a path there, and the file here with its content.
    ///
    /// # Errors
    /// [`NestedError::Image`] if one cannot be read.
    pub fn bring(&mut self, files: &[(String, PathBuf)]) -> Result<(), NestedError> {
        let end = self.end_of_parts()?;
        image::add_files(BufWriter::new(end), files)?;
        self.initrd_bytes = self.initrd.metadata()?.len();
        Ok(())
    }

    /// Boots the outer machine and runs `lacuna ARGUMENTS` in it. Passes on every line that it writes, its output when it
    /// has ended, and returns its exit status. A job whose machine stands still (an error of the emulator, not of the job)
    /// begins again.
    ///
    /// # Errors
    /// [`NestedError`] if there is no exit status.
    pub fn run(
        &mut self,
        arguments: &[impl AsRef<str>],
        mut on_line: impl FnMut(Line),
    ) -> Result<i32, NestedError> {
        let mut tries = 1;
        loop {
            let mut output = Vec::new();
            let gather = |line: Line| match line {
                Line::Output(line) => output.push(line.to_owned()),
                Line::Error(_) => on_line(line),
            };
            match self.try_once(arguments, gather) {
                Err(error @ MachineError::StandsStill { .. }) if tries < MOST_TRIES => {
                    tries += 1;
                    on_line(Line::Error(&format!(
                        "{error}\nonce more: the job begins again"
                    )));
                }
                result => {
                    output.iter().for_each(|line| on_line(Line::Output(line)));
                    return Ok(result?);
                }
            }
        }
    }

    fn try_once(
        &mut self,
        arguments: &[impl AsRef<str>],
        on_line: impl FnMut(Line),
    ) -> Result<i32, MachineError> {
        self.write_job(arguments).map_err(MachineError::Start)?;
        let machine = Machine {
            qemu: &self.parts.qemu,
            setpriv: &self.parts.setpriv,
            kernel: &self.parts.kernel.image(),
            initrd: &self.initrd,
            console: tempfile::tempfile().map_err(MachineError::Start)?,
        };
        machine.run(&self.settings, on_line)
    }

    /// Appends a job to the initial ramdisk, in place of the one before.
    fn write_job(&self, arguments: &[impl AsRef<str>]) -> io::Result<()> {
        let mut environment = vec![(NESTED_VARIABLE, "1".to_owned())];
        for name in PASSED_VARIABLES {
            environment.extend(env::var(name).ok().map(|value| (name, value)));
        }
        image::add_job(self.end_of_parts()?, &environment, arguments)?;
        Ok(())
    }

    /// The initial ramdisk's file, positioned where a job is appended.
    fn end_of_parts(&self) -> io::Result<&File> {
        self.initrd.set_len(self.initrd_bytes)?;
        let mut end = &self.initrd;
        end.seek(SeekFrom::End(0))?;
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_flag_counts_as_a_whole_word() {
        assert!(has_virtualization("vendor_id: x\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags : fpu svm"));
        assert!(!has_virtualization(
            "flags : fpu svm_lock vmx_x\nvmx flags : vnmi\nmodel name: svm"
        ));
    }
}
