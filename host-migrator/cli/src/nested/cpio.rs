// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Initial ramdisks: the "newc" form of cpio, which is what the Linux kernel unpacks.
//!
//! An entry is a header of 8-digit hexadecimal numbers, the name with a final zero byte, and the data,
//! the last two padded to 4 bytes. (The kernel's Documentation/driver-api/early-userspace/buffer-format.rst)

use std::collections::BTreeSet;
use std::io::Write;

const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;

/// An archive that is being written, with the folders that its files need. Every file is executable: only the guest's
/// root uses them.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    entries: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Begins an archive in `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            entries: 0,
            folders: BTreeSet::new(),
        }
    }

    /// Adds the folder `path` and its parents, each once. A leading slash is ignored.
    ///
    /// # Errors
    /// Those of the output.
    pub fn folder(&mut self, path: &str) -> std::io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.folders.insert(path.to_owned());
        self.entry(path, FOLDER, &[])
    }

    /// Adds the file `path` and its parent folders.
    ///
    /// # Errors
    /// Those of the output, and `FileTooLarge` for data of 4 GiB and more.
    pub fn file(&mut self, path: &str, data: &[u8]) -> std::io::Result<()> {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.entry(path, FILE, data)
    }

    /// Ends the archive. Another one may follow in the same output: the kernel unpacks both.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> std::io::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> std::io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        self.entries += 1;
        let mut header = MAGIC.to_vec();
        let links = 1;
        let name_size = name.len() as u32 + 1;
        // inode, mode, user, group, links, time, size, device and special device (two each), name, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        header.resize(header.len().next_multiple_of(4), 0);
        self.out.write_all(&header)?;
        self.out.write_all(data)?;
        let padding = data.len().next_multiple_of(4) - data.len();
        self.out.write_all(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_layout_of_newc() {
        let mut archive = Archive::new(Vec::new());
        archive.file("init", b"#!x").unwrap();
        let bytes = archive.finish().unwrap();
        let expected = "070701\
            00000001000081ed0000000000000000000000010000000000000003\
            000000000000000000000000000000000000000500000000init\0";
        let text = expected.as_bytes();
        assert_eq!(&bytes[..text.len()], text);
        let data = text.len().next_multiple_of(4);
        assert_eq!(&bytes[data..data + 4], b"#!x\0");
        assert!(bytes.len().is_multiple_of(4));
        assert!(
            bytes
                .windows(TRAILER.len())
                .any(|window| window == TRAILER.as_bytes())
        );
    }

    #[test]
    fn folders_come_before_their_files_and_only_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/one", b"").unwrap();
        archive.file("a/b/two", b"").unwrap();
        archive.folder("/a/").unwrap();
        assert_eq!(archive.entries, 4);
        let bytes = archive.finish().unwrap();
        let at = |name: &str| {
            bytes
                .windows(name.len())
                .position(|w| w == name.as_bytes())
                .unwrap()
        };
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/one\0"));
    }
}
