// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel modules: which ones a driver needs, in the order in which they are loaded.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::decompress::decompress;

/// The loadable modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
}

/// One module, ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The object file, decompressed.
    pub object: Vec<u8>,
}

impl Modules {
    /// Finds all modules under `folder`, the `lib/modules/VERSION` of a kernel package.
    ///
    /// # Errors
    /// Those of reading the folders.
    pub fn find(folder: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if let Some((name, _)) =
                    entry.file_name().to_string_lossy().split_once(".ko")
                {
                    files.insert(underscored(name), entry.path());
                }
            }
        }
        Ok(Self { files })
    }

    /// The modules `names` and their dependencies, each after those it depends on. A name without a module is left
    /// out: such a driver is built into the kernel, or what needs the driver will report that it is missing.
    ///
    /// # Errors
    /// Those of reading and decompressing the files.
    pub fn with_dependencies(&self, names: &[&str]) -> io::Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in names {
            self.add(&underscored(name), &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, ordered: &mut Vec<Module>) -> io::Result<()> {
        let Some(path) = self.files.get(name) else {
            return Ok(());
        };
        if ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let object = decompress(fs::read(path)?)?;
        for dependency in dependencies(&object) {
            self.add(&dependency, ordered)?;
        }
        ordered.push(Module {
            name: name.to_owned(),
            object,
        });
        Ok(())
    }
}

/// The names that a module's `.modinfo` section lists: `depends=one,two` between zero bytes.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = object.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = object[start + KEY.len()..]
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(underscored)
        .collect()
}

/// `name` with `_` for `-`, which are the same in module names.
fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, depends) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(
                path,
                format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0"),
            )
            .unwrap();
        }
        folder
    }

    #[test]
    fn a_module_comes_after_all_it_depends_on() {
        let folder = tree(&[
            ("kernel/x/kvm-amd.ko", "kvm,ccp"),
            ("kernel/x/kvm.ko", "irqbypass"),
            ("kernel/c/ccp.ko", ""),
            ("kernel/v/irqbypass.ko", ""),
            ("kernel/v/other.ko", ""),
        ]);
        let modules = Modules::find(folder.path()).unwrap();
        let names: Vec<_> = modules
            .with_dependencies(&["kvm-amd", "irqbypass", "built-in"])
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect();
        assert_eq!(names, ["irqbypass", "kvm", "ccp", "kvm_amd"]);
    }
}
