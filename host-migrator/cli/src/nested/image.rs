// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initial ramdisks of the Linux guest and of the outer machine around it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use reference_vmm::images::{LINUX_AGENT, LINUX_INIT};

use super::cpio::Archive;
use super::elf;
use super::kernel::{Kernel, MODULE_LIST};

/// The Linux guest's kernel in the outer machine.
pub const GUEST_KERNEL: &str = "/guest/vmlinux";
/// The Linux guest's initial ramdisk in the outer machine.
pub const GUEST_INITRD: &str = "/guest/initrd";
/// The initial ramdisk of a Linux guest with PCI, in the outer machine.
pub const PCI_GUEST_INITRD: &str = "/guest/pci-initrd";
/// The script that runs in the outer machine, and the folder of its programs.
const JOB: &str = "/job";
const COMMAND: &str = "/bin/lacuna";
const BUSYBOX: &str = "/bin/busybox";
const OUTER_INIT: &str = include_str!("outer-init.sh");

/// The initial ramdisk of the Linux guest: its first process, the agent, and the modules of the virtio drivers.
///
/// # Errors
/// Those of reading the modules.
pub fn guest_initrd(kernel: &Kernel) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.file("/init", LINUX_INIT)?;
    // Where the first process looks for it.
    archive.file("/bin/lacuna-agent", LINUX_AGENT)?;
    add_modules(&mut archive, &kernel.guest_modules())?;
    archive.finish()
}

/// The initial ramdisk of a Linux guest with PCI: the modules of the virtio drivers, and nothing to run.
///
/// # Errors
/// Those of reading the modules.
pub fn pci_guest_initrd(kernel: &Kernel) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    add_modules(&mut archive, &kernel.pci_guest_modules())?;
    archive.finish()
}

/// Writes the outer machine's initial ramdisk without the job: the programs and their libraries, the outer modules,
/// and the Linux guest. It is not compressed, because the emulated processor copies faster than it decompresses.
///
/// # Errors
/// Those of reading the parts and of `out`.
pub fn outer_initrd<W: Write>(
    out: W,
    kernel: &Kernel,
    busybox: &Path,
    command: &Path,
) -> io::Result<W> {
    let mut archive = Archive::new(out);
    archive.file("/init", OUTER_INIT.as_bytes())?;
    for folder in ["/proc", "/sys", "/dev"] {
        archive.folder(folder)?;
    }
    let mut libraries = Vec::new();
    for (name, program) in [(BUSYBOX, busybox), (COMMAND, command)] {
        archive.file(name, &elf::program(program)?)?;
        libraries.extend(elf::libraries(program)?);
    }
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        archive.file(&library, &elf::program(Path::new(&library))?)?;
    }
    add_modules(&mut archive, &kernel.outer_modules())?;
    archive.file(GUEST_KERNEL, &fs::read(kernel.image())?)?;
    archive.file(GUEST_INITRD, &guest_initrd(kernel)?)?;
    archive.file(PCI_GUEST_INITRD, &pci_guest_initrd(kernel)?)?;
    archive.finish()
}

/// Appends files to an initial ramdisk. Each is a path in the ramdisk, and the file with its content.
///
/// # Errors
/// Those of reading them and of `out`.
pub fn add_files<W: Write>(out: W, files: &[(String, PathBuf)]) -> io::Result<W> {
    let mut archive = Archive::new(out);
    for (path, content) in files {
        archive.file(path, &fs::read(content)?)?;
    }
    archive.finish()
}

/// Appends the job to an initial ramdisk: the command with `arguments` and `environment`.
///
/// # Errors
/// Those of `out`.
pub fn add_job<W: Write>(
    out: W,
    environment: &[(&str, String)],
    arguments: &[impl AsRef<str>],
) -> io::Result<W> {
    let mut script = format!("#!{BUSYBOX} sh\n");
    for (name, value) in environment {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    script.push_str(&format!("exec {COMMAND}"));
    for argument in arguments {
        script.push(' ');
        script.push_str(&quoted(argument.as_ref()));
    }
    script.push('\n');
    let mut archive = Archive::new(out);
    archive.file(JOB, script.as_bytes())?;
    archive.finish()
}

fn add_modules<W: Write>(archive: &mut Archive<W>, folder: &Path) -> io::Result<()> {
    let list = fs::read_to_string(folder.join(MODULE_LIST))?;
    for file in list.lines() {
        archive.file(&format!("/modules/{file}"), &fs::read(folder.join(file))?)?;
    }
    archive.file(&format!("/modules/{MODULE_LIST}"), list.as_bytes())
}

/// `text` as one word of a shell command.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_quoted_word_comes_through_the_shell_as_it_was() {
        let word = "a 'quoted' $HOME \"word\"\\";
        let script = format!("printf %s {}", quoted(word));
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }
}
