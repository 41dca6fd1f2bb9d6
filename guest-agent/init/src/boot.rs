// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a first process must do at the start: mount file systems and load drivers.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::finit_module;
use thiserror::Error;

/// The folder of kernel modules in the initial ramdisk. The file [`LIST`] in it names them in load order, one on each
/// line.
const MODULES: &str = "/modules";
const LIST: &str = "list";

const FILE_SYSTEMS: [(&CStr, &str); 4] = [
    (c"proc", "/proc"),
    (c"sysfs", "/sys"),
    (c"devtmpfs", "/dev"),
    (c"tmpfs", "/tmp"),
];

/// Why the guest did not start.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file system could not be mounted.
    #[error("mounting {target}: {source}")]
    Mount {
        target: &'static str,
        source: io::Error,
    },
    /// A module, or the list of them, could not be loaded.
    #[error("loading {}: {source}", path.display())]
    Module { path: PathBuf, source: io::Error },
}

/// Mounts the kernel's file systems and a `/tmp`.
pub fn mount_file_systems() -> Result<(), BootError> {
    for (kind, target) in FILE_SYSTEMS {
        fs::create_dir_all(target)
            .and_then(|()| Ok(mount(kind, target, kind, MountFlags::empty(), None)?))
            .map_err(|source| BootError::Mount { target, source })?;
    }
    Ok(())
}

/// Loads the modules of the list. A module that is loaded already is not an error.
pub fn load_modules() -> Result<(), BootError> {
    let list = PathBuf::from(MODULES).join(LIST);
    let names =
        fs::read_to_string(&list).map_err(|source| BootError::Module { path: list, source })?;
    for name in names.lines().filter(|name| !name.is_empty()) {
        let path = PathBuf::from(MODULES).join(name);
        fs::File::open(&path)
            .and_then(|file| match finit_module(&file, c"", 0) {
                Err(Errno::EXIST) => Ok(()),
                result => Ok(result?),
            })
            .map_err(|source| BootError::Module { path, source })?;
    }
    Ok(())
}
