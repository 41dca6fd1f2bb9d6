// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's generic kernel: the kernel of the outer machine and of the Linux guest in it.
//!
//! It is fetched once, unpacked without being installed, and kept in a cache folder as
//!
//! | file | what |
//! |---|---|
//! | `vmlinux` | the kernel itself, decompressed: an emulated processor would take seconds for that |
//! | `outer/`, `guest/`, `pci-guest/` | the modules of a machine, and their load order in the file `list` |

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use log::info;
use thiserror::Error;

use super::decompress::{GZIP, decompress};
use super::modules::{Module, Modules};
use super::packages::{self, PackageError};

/// The environment variable that names the folder for kernels, instead of the user's cache folder.
pub const CACHE_VARIABLE: &str = "LACUNA_CACHE";
/// Changes with the layout of a kernel's folder, and with the modules in it.
const LAYOUT: &str = "kernels-6";

/// The file in a folder of modules that lists them in load order, one on each line.
pub const MODULE_LIST: &str = "list";
/// Drivers of the outer machine: KVM, netem, with which a bench delays packets, and vsock within one machine.
const OUTER_DRIVERS: &[&str] = &["kvm_amd", "sch_netem", "vsock_loopback"];
/// Drivers of the Linux guest. The agent's port needs those of the console.
const GUEST_DRIVERS: &[&str] = &["virtio_mmio", "virtio_console", "virtio_balloon"];
/// Drivers of a Linux guest whose virtio devices are on PCI, with a disk and another transport for the agent.
const PCI_GUEST_DRIVERS: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
];

/// Why there is no kernel.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The cache folder cannot be used.
    #[error("the cache folder {} cannot be used (set {CACHE_VARIABLE} to another): {source}", path.display())]
    Cache {
        /// The folder.
        path: PathBuf,
        /// Why it cannot be used.
        source: io::Error,
    },
    /// There is neither `LACUNA_CACHE` nor a home folder.
    #[error("there is no folder for kernels: set {CACHE_VARIABLE}")]
    NoCache,
    /// The kernel could not be fetched.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The package lacks what is needed.
    #[error("the kernel package {package} cannot be used: {reason}")]
    Unusable {
        /// The package.
        package: String,
        /// What it lacks.
        reason: String,
    },
}

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The kernel in the cache, or else Debian's current one, a download of some 70 MB.
    ///
    /// # Errors
    /// [`KernelError`], in one sentence that says what to do.
    pub fn find_or_fetch() -> Result<Self, KernelError> {
        let cache = cache_folder()?.join(LAYOUT);
        fs::create_dir_all(&cache).map_err(|source| unusable_cache(&cache, source))?;
        match newest(&cache).map_err(|source| unusable_cache(&cache, source))? {
            Some(folder) => Ok(Self { folder }),
            None => Self::fetch(&cache),
        }
    }

    /// The kernel, an ELF file.
    pub fn image(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The folder of the modules of the outer machine.
    pub fn outer_modules(&self) -> PathBuf {
        self.folder.join("outer")
    }

    /// The folder of the modules of the Linux guest.
    pub fn guest_modules(&self) -> PathBuf {
        self.folder.join("guest")
    }

    /// The folder of the modules of a Linux guest with PCI.
    pub fn pci_guest_modules(&self) -> PathBuf {
        self.folder.join("pci-guest")
    }

    /// Writes `data` to the file `name` beside the kernel, and returns its path. An existing file is replaced
    /// atomically, because another process may be reading it.
    ///
    /// # Errors
    /// [`KernelError::Cache`].
    pub fn keep(&self, name: &str, data: &[u8]) -> Result<PathBuf, KernelError> {
        let path = self.folder.join(name);
        let keep = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(data)?;
            file.persist(&path)?;
            Ok(())
        };
        keep().map_err(|source| unusable_cache(&self.folder, source))?;
        Ok(path)
    }

    fn fetch(cache: &Path) -> Result<Self, KernelError> {
        let cache_error = |source| unusable_cache(cache, source);
        let work = tempfile::tempdir_in(cache).map_err(cache_error)?;
        info!("fetching Debian's kernel into {}", cache.display());
        let package = packages::unpack_kernel(work.path())?;
        let kernel = Self {
            folder: work.path().join("kernel"),
        };
        kernel
            .take_from(&package.folder)
            .map_err(|error| KernelError::Unusable {
                package: package.name.clone(),
                reason: error.to_string(),
            })?;
        // Last, and atomically: a folder with this name is complete.
        let folder = cache.join(&package.name);
        match fs::rename(&kernel.folder, &folder) {
            // Another process was faster.
            Err(_) if folder.is_dir() => {}
            result => result.map_err(cache_error)?,
        }
        Ok(Self { folder })
    }

    /// Fills this kernel's folder from an unpacked package.
    fn take_from(&self, package: &Path) -> io::Result<()> {
        let compressed = only_file(&package.join("boot"), "vmlinuz-")?;
        let kernel = decompress(payload(fs::read(compressed)?)?)?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .map(|folder| package.join(folder))
            .find(|folder| folder.is_dir())
            .ok_or_else(|| io::Error::other("it has no modules"))?;
        let modules = Modules::find(&modules)?;

        fs::create_dir(&self.folder)?;
        fs::write(self.image(), kernel)?;
        write_modules(
            &self.outer_modules(),
            &modules.with_dependencies(OUTER_DRIVERS)?,
        )?;
        write_modules(
            &self.guest_modules(),
            &modules.with_dependencies(GUEST_DRIVERS)?,
        )?;
        write_modules(
            &self.pci_guest_modules(),
            &modules.with_dependencies(PCI_GUEST_DRIVERS)?,
        )
    }
}

fn unusable_cache(path: &Path, source: io::Error) -> KernelError {
    KernelError::Cache {
        path: path.to_owned(),
        source,
    }
}

/// Where kernels are kept, by the rules of the XDG base directories.
///
/// # Errors
/// [`KernelError::NoCache`].
pub fn cache_folder() -> Result<PathBuf, KernelError> {
    let variable = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable(CACHE_VARIABLE)
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("lacuna")))
        .or_else(|| Some(variable("HOME")?.join(".cache/lacuna")))
        .ok_or(KernelError::NoCache)
}

/// The kernel in `cache` with the greatest name, because the package's name holds the version.
fn newest(cache: &Path) -> io::Result<Option<PathBuf>> {
    let mut kernels = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(packages::KERNEL_PREFIX)
        {
            kernels.push(entry.path());
        }
    }
    Ok(kernels.into_iter().max())
}

/// The one file in `folder` whose name begins with `prefix`.
fn only_file(folder: &Path, prefix: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    Err(io::Error::other(format!("it has no {prefix}*")))
}

/// The compressed kernel inside a bzImage. The setup header says where it is. (The kernel's
/// Documentation/arch/x86/boot.rst, `payload_offset`)
fn payload(mut image: Vec<u8>) -> io::Result<Vec<u8>> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_BYTES: usize = 0x24c;
    const SECTOR: usize = 512;

    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let range = || {
        if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
            return None;
        }
        // For old boot loaders, 0 means 4. The boot sector itself is not counted.
        let sectors = match image[SETUP_SECTORS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (sectors + 1) * SECTOR + number(PAYLOAD_OFFSET)?;
        let end = start.checked_add(number(PAYLOAD_BYTES)?)?;
        let payload = image.get(start..end)?;
        // The decompressed size follows the data in every format except gzip, which contains it.
        let size = if payload.starts_with(GZIP) { 0 } else { 4 };
        Some(start..end.checked_sub(size)?)
    };
    let range = range().ok_or_else(|| io::Error::other("its kernel is not a bzImage"))?;
    image.truncate(range.end);
    image.drain(..range.start.min(range.end));
    Ok(image)
}

fn write_modules(folder: &Path, modules: &[Module]) -> io::Result<()> {
    fs::create_dir(folder)?;
    let mut list = String::new();
    for module in modules {
        let file = format!("{}.ko", module.name);
        fs::write(folder.join(&file), &module.object)?;
        list.push_str(&file);
        list.push('\n');
    }
    fs::write(folder.join(MODULE_LIST), list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage of two sectors with `compressed` behind the setup code.
    fn bzimage(compressed: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&8u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(compressed.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0xcc; 8]);
        image.extend_from_slice(compressed);
        image.extend_from_slice(&[0xcc; 100]);
        image
    }

    #[test]
    fn the_payload_of_a_bzimage_is_found_without_its_size() {
        assert_eq!(
            payload(bzimage(b"\xfd7zXZ\0datasize")).unwrap(),
            b"\xfd7zXZ\0data"
        );
        assert_eq!(payload(bzimage(b"\x1f\x8bdata")).unwrap(), b"\x1f\x8bdata");
    }

    #[test]
    fn a_cut_bzimage_is_an_error() {
        let image = bzimage(b"\xfd7zXZ\0datasize");
        for len in [0, 0x1f1, 0x204, 0x24d, 1024, 1040] {
            assert!(payload(image[..len].to_vec()).is_err(), "{len}");
        }
    }
}
